"""The command that converts text logs, and shards cut from what it writes."""

import os
import subprocess
import sys

from absl.testing import flagsaver
from apache_beam.options import pipeline_options
import numpy as np
import pytest
import tensorflow_datasets as tfds

from beam_jobs import transvw_luna16
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_ROWS = (
  '/old/1.2.840.000.npy#3,4,5,64,32#0',
  '/old/1.2.840.001.npy#3,4,5,64,32#0',
  '/old/1.2.840.001.npy#7,6,1,64,32#1',
)


@pytest.fixture
def scans(tmp_path):
  return tiny_scans.write_luna16(
    tmp_path / 'scans', train=2, validation=0, held_out=0
  )


@pytest.fixture
def logs(tmp_path):
  (tmp_path / 'logs').mkdir()
  for number, side in ((1, 64), (2, 50), (3, 70)):
    path = tmp_path / 'logs' / f'train_data{number}_vwGen_exRef.txt'
    path.write_text(
      ''.join(f'{row}\n' for row in _ROWS).replace('64,32', f'{side},32')
    )
  return os.fspath(tmp_path / 'logs')


def test_there_and_back_and_into_shards(import_main, tmp_path, scans, logs):
  module = import_main('tools.convert_log')
  words, back = os.fspath(tmp_path / 'words'), os.fspath(tmp_path / 'back')
  with flagsaver.flagsaver(log=logs, scans=scans, output=words):
    module.main([])
  with flagsaver.flagsaver(vocabulary=words, scans=scans, output=back):
    module.main([])
  for name in os.listdir(logs):
    with open(os.path.join(logs, name), encoding='utf-8') as file:
      wanted = [line.partition('#')[2] for line in file]
    with open(os.path.join(back, name), encoding='utf-8') as file:
      assert [line.partition('#')[2] for line in file] == wanted

  builder = transvw_luna16.Builder(
    data_dir=os.fspath(tmp_path / 'data'),
    config=transvw_luna16.Builder.builder_config_cls(
      name='logs', vocabulary=words
    ),
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=scans,
      beam_options=pipeline_options.PipelineOptions(['--runner=FnApiRunner']),
    )
  )
  hu = {
    one.scan_id: reader.read_scan(one.path).hu
    for one in luna16.find_scans(scans)
  }
  found = list(tfds.as_numpy(builder.as_dataset(split='train')))
  assert len(found) == 9
  for one in found:
    assert np.isnan(one['distance'])
    np.testing.assert_allclose(
      one['cube'],
      tiny_scans.expected_cube(
        hu[one['scan_id'].decode()], one['origin'], one['size']
      ),
      atol=0.501,
    )


def test_wrong_flags_and_rows_leave_nothing(import_main, tmp_path, scans, logs):
  module = import_main('tools.convert_log')
  out = os.fspath(tmp_path / 'out')
  with flagsaver.flagsaver(scans=scans, output=out):
    with pytest.raises(errors.UserError, match='give one of --log and --voc'):
      module.main([])
    with (
      flagsaver.flagsaver(log=logs, vocabulary=logs),
      pytest.raises(errors.UserError, match='give one of --log and --voc'),
    ):
      module.main([])
    with (
      flagsaver.flagsaver(log=logs, output=logs),
      pytest.raises(errors.UserError, match=r'--output .*logs exists; give an'),
    ):
      module.main([])
    with (
      flagsaver.flagsaver(
        log=logs, output=f'{logs}/train_data1_vwGen_exRef.txt/o'
      ),
      pytest.raises(errors.UserError, match='cannot be written'),
    ):
      module.main([])
    with open(f'{logs}/train_data1_vwGen_exRef.txt', 'a') as file:
      file.write('broken\n')
    with (
      flagsaver.flagsaver(log=logs),
      pytest.raises(errors.UserError, match='line 4 is'),
    ):
      module.main([])
  assert sorted(os.listdir(tmp_path)) == ['logs', 'scans']


def test_the_command(tmp_path, scans, logs):
  done = subprocess.run(
    [
      *(sys.executable, 'tools/convert_log.py', '--log', logs),
      *('--scans', scans, '--output', os.fspath(tmp_path / 'words')),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('words: 2, cubes: 9\nnote: read from text logs')
