"""tools/venv.sh takes the versions of Python that setup.py asks for."""

import os
import re
import shutil
import subprocess
import sys

from packaging import specifiers
import pytest

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(os.path.dirname(_HERE))

_VERSIONS = [
  ('3.10.9', False),
  ('3.11.0', True),
  ('3.13.7', True),
  ('3.14.0', False),
]

# Says that it is another version, and makes no environment.
_PYTHON = """#!/bin/sh
case "$1" in
  --version) echo Python {version} ;;
  -c) exec {python} -c "import sys; sys.version_info = {parts}; $2" ;;
  *) exit 1 ;;
esac
"""


@pytest.mark.parametrize(('version', 'taken'), _VERSIONS)
def test_other_versions_are_refused_in_one_line(version, taken, tmp_path):
  (tmp_path / 'tools').mkdir()
  shutil.copy(os.path.join(_ROOT, 'tools', 'venv.sh'), tmp_path / 'tools')
  shutil.copy(os.path.join(_ROOT, 'setup.py'), tmp_path)
  python = tmp_path / 'python'
  parts = tuple(map(int, version.split('.')))
  python.write_text(
    _PYTHON.format(version=version, python=sys.executable, parts=parts)
  )
  python.chmod(0o755)
  done = subprocess.run(
    ['bash', '-euc', 'source tools/venv.sh'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHON': str(python)},
    check=False,
  )
  assert done.returncode == 1
  line = (
    "error: cannot make .venv; is Python's venv module installed?"
    if taken
    else f'error: Python 3.11, 3.12 or 3.13 is needed, {python} is Python'
    f' {version}; set PYTHON to another one'
  )
  assert done.stderr == f'{line}\n'
  assert not (tmp_path / '.venv').exists()


@pytest.mark.parametrize(('version', 'taken'), _VERSIONS)
def test_setup_asks_for_the_same(version, taken):
  with open(os.path.join(_ROOT, 'setup.py'), encoding='utf-8') as file:
    (wanted,) = re.findall(r"python_requires='(.*?)'", file.read())
  assert (version in specifiers.SpecifierSet(wanted)) == taken
