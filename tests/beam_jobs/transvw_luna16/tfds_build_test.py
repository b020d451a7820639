"""`tfds build` from the outside; each run is a process of its own."""

import hashlib
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from tests.beam_jobs import tiny_scans
from transvw_tf2 import schema

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
_TFDS = os.path.join(os.path.dirname(sys.executable), 'tfds')
_CONFIG = (
  '{"name": "tiny", "words": 3, "xy_border": 4, "z_border": 4,'
  ' "min_distance": 1}'
)


def _build(*arguments, cwd, **named):
  options = [f'--{name}={value}' for name, value in named.items()]
  return subprocess.run(
    [_TFDS, 'build', *arguments, *options],
    capture_output=True,
    text=True,
    cwd=cwd,
    # Nobody is there to answer a question.
    stdin=subprocess.DEVNULL,
    check=False,
  )


def _hashes(folder):
  return {
    name: hashlib.sha256(
      open(os.path.join(folder, name), 'rb').read()
    ).hexdigest()
    for name in os.listdir(folder)
    if name != 'dataset_info.json'  # holds the name of the module
  }


@pytest.mark.long
def test_one_and_two_processes_write_the_same_files(tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans')
  done = _build(
    'transvw_luna16',
    cwd=os.path.join(_ROOT, 'beam_jobs'),
    manual_dir=scans,
    data_dir=tmp_path / 'one',
    config=_CONFIG,
  )
  assert done.returncode == 0, done.stderr
  assert 'scans: 6 read, 0 rejected\n' in done.stdout
  assert 'cubes_written: 42\n' in done.stdout  # 3 * 4 * 3 + 3 * 2
  # The engine is part of Beam: nothing is downloaded.
  assert 'Prism' not in done.stdout + done.stderr

  done = _build(
    'transvw_luna16',
    cwd=tmp_path,
    imports='beam_jobs.transvw_luna16',
    manual_dir=scans,
    data_dir=tmp_path / 'two',
    config=_CONFIG,
    beam_pipeline_options='runner=FnApiRunner,direct_num_workers=2,'
    'direct_running_mode=multi_processing',
  )
  assert done.returncode == 0, done.stderr
  one, two = (
    os.path.join(tmp_path, name, 'transvw_luna16', 'tiny', '1.0.0')
    for name in ('one', 'two')
  )
  assert _hashes(one) == _hashes(two)
  splits = tfds.builder_from_directory(one).info.splits
  assert {name: split.num_examples for name, split in splits.items()} == {
    schema.TRAIN: 36,
    schema.VALIDATION: 6,
  }


def test_a_failed_build_ends_with_a_clear_line_and_leaves_nothing(tmp_path):
  (tmp_path / 'subset0').mkdir()
  tiny_scans.write_bad(tmp_path / 'subset0')
  data_dir = tmp_path / 'data'
  done = _build(
    'transvw_luna16',
    cwd=tmp_path,
    imports='beam_jobs.transvw_luna16',
    manual_dir=tmp_path,
    data_dir=data_dir,
    config=_CONFIG,
  )
  assert done.returncode != 0
  last = done.stderr.strip().splitlines()[-1]
  assert 'UserError: 0 usable training scans, at least 2 are needed' in last
  assert os.listdir(data_dir / 'transvw_luna16' / 'tiny') == []
