"""Target data sets are the same with one process and with two."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from tests.beam_jobs import tiny_scans
from transvw_tf2.scans import phantom

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_TWO = (
  '--beam_pipeline_options=runner=FnApiRunner,direct_num_workers=2,'
  'direct_running_mode=multi_processing'
)


@pytest.fixture(scope='module', name='scans')
def _scans(tmp_path_factory):
  """LUNA16 with lung masks and nodules; labels.csv with the candidates."""
  folder = tmp_path_factory.mktemp('scans') / 'luna16'
  phantom.write_luna16(str(folder), 10, (96, 96, 64), seed=7)
  tiny_scans.write_labels(folder)
  return folder


def _build(builder, config, scans, data_dir, *more):
  done = subprocess.run(
    [
      *(os.path.join(os.path.dirname(sys.executable), 'tfds'), 'build'),
      *(builder, f'--imports=beam_jobs.{builder}', f'--manual_dir={scans}'),
      f'--config={json.dumps(config)}',
      f'--data_dir={data_dir}',
      *more,
    ],
    capture_output=True,
    encoding='utf-8',
    cwd=_ROOT,
    stdin=subprocess.DEVNULL,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  folder = data_dir / builder / config['name'] / '1.1.0'
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
  }


@pytest.mark.long
@pytest.mark.parametrize(
  ('builder', 'task'),
  [
    ('luna16_nodules', 'false_positive_reduction'),
    ('luna16_nodules', 'nodule_segmentation'),
    ('luna16_nodules', 'lung_segmentation'),
    ('labelled_scans', 'classification'),
  ],
)
def test_two_processes_write_the_same_files(scans, tmp_path, builder, task):
  config = {'name': 'tiny', 'task': task, 'cube_shape': [16, 16, 8]}
  one = _build(builder, config, scans, tmp_path / 'one')
  two = _build(builder, config, scans, tmp_path / 'two', _TWO)
  assert one == two
  assert any('-train.tfrecord' in name for name in one)
