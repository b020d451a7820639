"""The wheel works in a fresh environment outside of the repository."""

import os
import site
import subprocess
import sys
import zipfile

import pytest

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(name='wheel', scope='module')
def _wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  # From a copy: setuptools leaves a build folder in its source.
  source = folder / 'source'
  names = subprocess.run(
    ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=True,
  ).stdout.split('\0')
  for name in filter(None, names):
    target = source / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(os.path.join(_ROOT, name), 'rb') as file:
      target.write_bytes(file.read())
  subprocess.run(
    [
      *(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps'),
      *('--no-build-isolation', '--wheel-dir', str(folder), str(source)),
    ],
    check=True,
  )
  (path,) = folder.glob('*.whl')
  return path


def test_what_is_in_the_wheel(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  tops = {name.split('/')[0].split('-')[0] for name in names}
  assert tops == {'beam_jobs', 'transvw_tf2'}
  shipped = {name.partition('.data/')[2] for name in names}
  assert 'data/share/transvw_tf2/gin/runs/pretrain.gin' in shipped
  assert 'data/share/transvw_tf2/gin/models/visual_word_net.gin' in shipped
  for name in ('README.md', 'CITATIONS.bib', 'TAGS.txt'):
    assert f'beam_jobs/transvw_luna16/{name}' in names


def test_a_main_runs_from_the_wheel(wheel, tmp_path):
  subprocess.run(
    [sys.executable, '-m', 'venv', '--without-pip', str(tmp_path / 'venv')],
    check=True,
  )
  python = str(tmp_path / 'venv' / 'bin' / 'python')
  # The dependencies of this environment, for they are 3 GB; the package
  # itself comes from the wheel, which lies before them.
  (found,) = (tmp_path / 'venv').glob('lib/*/site-packages')
  (found / 'dependencies.pth').write_text(site.getsitepackages()[0])
  subprocess.run(
    [
      *(sys.executable, '-m', 'pip', f'--python={python}', 'install'),
      *('--quiet', '--no-deps', '--ignore-installed', str(wheel)),
    ],
    check=True,
  )
  done = subprocess.run(
    [
      *(python, '-m', 'transvw_tf2.train'),
      *('--gin_file=gin/runs/pretrain.gin', '--workdir=run'),
    ],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=False,
  )
  # The gin file and its includes were found; only the data set is missing.
  assert done.stderr.splitlines()[-1].startswith('error: no data set is given')
  assert done.returncode == 1
  where = subprocess.run(
    [python, '-c', 'import transvw_tf2; print(transvw_tf2.__file__)'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=True,
  )
  assert where.stdout.startswith(str(tmp_path / 'venv'))
