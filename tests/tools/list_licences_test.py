"""The list of licences, of packages that are made up."""

import os
import re
import subprocess
import sys

import pytest

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


def _install(folder, name, *lines, version='1.0'):
  """Writes the metadata of an installed package."""
  info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
  info.mkdir(parents=True)
  head = ('Metadata-Version: 2.4', f'Name: {name}', f'Version: {version}')
  (info / 'METADATA').write_text('\n'.join((*head, *lines)) + '\n')


def _run(folder, project='made-up'):
  return subprocess.run(
    [
      *(sys.executable, 'tools/list_licences.py', f'--project={project}'),
      f'--output={folder / "LIST.md"}',
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': f'{folder}{os.pathsep}{_ROOT}'},
    check=False,
  )


def _rows(folder):
  rows = re.findall(r'^\| (.+) \|$', (folder / 'LIST.md').read_text(), re.M)
  cells = [[cell.strip() for cell in row.split(' | ')] for row in rows]
  return {row[0]: row[1:] for row in cells if row[0] not in ('package', '---')}


def test_what_is_required_is_listed_once_with_its_licence(tmp_path):
  _install(
    tmp_path,
    'made-up',
    'Provides-Extra: fast',
    'Requires-Dist: made-base>=1',
    'Requires-Dist: made-quick[more]; extra == "fast"',
    'Requires-Dist: made-never; python_version < "3"',
  )
  _install(
    tmp_path,
    'made-base',
    'License-Expression: MIT',
    'License: something else',
    'Requires-Dist: made-deep',
    version='1.5',
  )
  _install(
    tmp_path,
    'made-deep',
    'License: UNKNOWN',
    'Classifier: License :: OSI Approved :: Mozilla Public License 2.0',
    # A circle ends.
    'Requires-Dist: made-base',
  )
  _install(
    tmp_path,
    'made-quick',
    'Provides-Extra: more',
    'Requires-Dist: made-more; extra == "more"',
    'Requires-Dist: made-less; extra == "less"',
    'License: GPLv3',
  )
  _install(tmp_path, 'made-more')
  _install(tmp_path, 'made-apart', 'License: Proprietary')
  done = _run(tmp_path)
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == 'packages: 4, marked: 3\n'
  assert _rows(tmp_path) == {
    'made-base': ['1.5', 'MIT', '', 'setup.py'],
    'made-deep': [
      *('1.0', 'Mozilla Public License 2.0'),
      *('**weak copyleft**', 'made-base'),
    ],
    'made-quick': ['1.0', 'GPLv3', '**strong copyleft**', 'setup.py', 'fast'],
    'made-more': ['1.0', 'unknown', '**unknown**', 'made-quick', 'fast'],
  }


def test_a_list_with_holes_is_not_written(tmp_path):
  _install(
    tmp_path,
    'made-up',
    'Provides-Extra: fast',
    'Requires-Dist: made-quick; extra == "fast"',
  )
  done = _run(tmp_path)
  assert done.returncode == 1
  assert done.stderr == (
    'error: not installed here: made-quick; run pip install -e ".[fast]"'
    ' first, so that the list is whole\n'
  )
  assert os.listdir(tmp_path) == ['made_up-1.0.dist-info']


def test_a_project_that_is_not_installed(tmp_path):
  done = _run(tmp_path, 'made-up')
  assert done.returncode == 1
  assert done.stderr == (
    'error: made-up is not installed here; run pip install -e . first\n'
  )


@pytest.mark.parametrize(
  ('licence', 'wanted'),
  [
    ('MIT', ''),
    ('BSD-3-Clause AND MIT', ''),
    ('LGPL-3.0-or-later', 'weak copyleft'),
    ('GNU Lesser General Public License v3 (LGPLv3)', 'weak copyleft'),
    ('MPL-2.0 AND MIT', 'weak copyleft'),
    ('GPL-2.0-only', 'strong copyleft'),
    ('AGPL-3.0', 'strong copyleft'),
    ('GNU General Public License v2 (GPLv2)', 'strong copyleft'),
    ('MPL-2.0 OR GPL-2.0', 'weak copyleft, strong copyleft'),
    ('LicenseRef-NVIDIA-Proprietary', 'proprietary'),
    ('unknown; of NVIDIA', 'unknown'),
  ],
)
def test_what_is_marked(import_main, licence, wanted):
  assert import_main('tools.list_licences').mark(licence) == wanted
