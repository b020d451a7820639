"""The index of thumbnails, in this process and from the outside."""

import csv
import os
import subprocess
import sys
from unittest import mock

from absl.testing import flagsaver
import numpy as np
import pytest
import tensorflow_datasets as tfds

from beam_jobs import thumbnails
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import thumbnail

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'))


@pytest.fixture
def job(import_main):
  return import_main('beam_jobs.index_scans')


def _read_bytes(folder):
  return {
    name: open(os.path.join(folder, name), 'rb').read()
    for name in sorted(os.listdir(folder))
  }


def _read_split(folder, split):
  builder = tfds.builder_from_directory(str(folder))
  examples = builder.as_dataset(split).as_numpy_iterator()
  return {one['scan_id'].decode(): one for one in examples}


def test_the_job_writes_a_data_set(job, scans, tmp_path, capsys):
  output = str(tmp_path / 'index')
  with flagsaver.flagsaver(scans=scans, output=output):
    job.main(['index_scans'])
  first, *lines = capsys.readouterr().out.splitlines()
  assert first.startswith('plan: ')
  assert lines == [
    'train: 4 thumbnails',
    'validation: 2 thumbnails',
    'rejected scans: 0',
    f'index: {output}',
  ]
  assert os.listdir(tmp_path) == ['index']
  # Scans are numbered: 0 to 3 train, 4 and 5 validation, 6 held out.
  for split, numbers in (('train', range(4)), ('validation', (4, 5))):
    found = _read_split(output, split)
    assert sorted(found) == [f'1.2.840.{number:03d}' for number in numbers]
    for number in numbers:
      one = found[f'1.2.840.{number:03d}']
      assert one['thumbnail'].dtype == np.int16
      np.testing.assert_array_equal(
        one['thumbnail'], thumbnail.make_thumbnail(tiny_scans.make_hu(number))
      )
      np.testing.assert_array_equal(one['size'], tiny_scans.SIZE)
      spacing = tiny_scans.make_geometry(number).spacing
      np.testing.assert_array_equal(one['spacing'], spacing)


def test_each_scan_is_read_once(job, scans, tmp_path):
  with mock.patch.object(
    reader, 'read_scan', side_effect=reader.read_scan
  ) as read:
    job.run(scans, str(tmp_path / 'index'))
  paths = sorted(call.args[0] for call in read.call_args_list)
  assert paths == sorted(
    one.path for one in luna16.find_scans(scans) if one.split != 'held_out'
  )


def test_the_order_in_which_scans_are_found_changes_nothing(
  job, scans, tmp_path
):
  job.run(scans, str(tmp_path / 'one'))
  found = luna16.find_scans(scans)[::-1]
  with mock.patch.object(luna16, 'find_scans', return_value=found):
    job.run(scans, str(tmp_path / 'two'))
  assert _read_bytes(tmp_path / 'one') == _read_bytes(tmp_path / 'two')


@pytest.mark.long
def test_two_processes_write_the_same_index(job, scans, tmp_path):
  job.run(scans, str(tmp_path / 'one'))
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'beam_jobs.index_scans'),
      f'--scans={scans}',
      f'--output={tmp_path / "two"}',
      '--runner=FnApiRunner',
      '--direct_num_workers=2',
      '--direct_running_mode=multi_processing',
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert _read_bytes(tmp_path / 'one') == _read_bytes(tmp_path / 'two')


def test_scans_that_cannot_be_used_are_listed(job, tmp_path, monkeypatch):
  # A shard for each scan, so that some shards have no thumbnail at all.
  monkeypatch.setattr(thumbnails, '_SCANS_IN_SHARD', 1)
  scans = tiny_scans.write_luna16(tmp_path / 'scans')
  bad = tiny_scans.write_bad(tmp_path / 'scans' / 'subset0')
  output = tmp_path / 'index'
  result = job.run(scans, str(output))
  assert {row[0]: row[1] for row in result.rejected} == bad
  with open(output / 'rejected.csv', newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert {row['scan']: row['reason'] for row in rows} == bad
  assert result.thumbnails == {'train': 4, 'validation': 2}
  assert len(_read_split(output, 'train')) == 4
  info = tfds.builder_from_directory(str(output)).info
  assert sorted(info.splits['train'].shard_lengths) == [0] * 5 + [1] * 4


def test_shards_are_even_and_of_one_split():
  scan_files = [
    luna16.ScanFile(f'1.{number}', f'{number}.mhd', split)
    for number, split in enumerate(
      ['train'] * 17 + ['validation'] * 8 + ['held_out'] * 3
    )
  ]
  requests = thumbnails.plan_shards(scan_files, 'folder')
  assert [(one.split, one.shard, len(one.scan_files)) for one in requests] == [
    ('train', 0, 5),
    ('train', 1, 6),
    ('train', 2, 6),
    ('validation', 0, 8),
  ]
  assert requests[1].output == os.path.join(
    'folder', 'scan_index-train.tfrecord-00001-of-00003'
  )
  assert requests == thumbnails.plan_shards(scan_files[::-1], 'folder')


def test_without_validation_scans_the_split_is_left_out(job, tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans', train=2, validation=0)
  assert job.run(scans, str(tmp_path / 'index')).thumbnails == {'train': 2}


def test_no_usable_training_scan_is_one_line(job, tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans', train=0)
  tiny_scans.write_bad(os.path.join(scans, 'subset5'))
  with pytest.raises(
    errors.UserError, match=r'no usable training scan; 7 scans .* 5 rejected,'
  ):
    job.run(scans, str(tmp_path / 'index'))
  assert os.listdir(tmp_path) == ['scans']


def test_an_output_that_exists_is_kept(job, scans, tmp_path):
  (tmp_path / 'mine.txt').write_text('kept')
  with pytest.raises(errors.UserError, match=r'--output .* exists; give'):
    job.run(scans, str(tmp_path))
  assert (tmp_path / 'mine.txt').read_text() == 'kept'


def test_an_interrupted_run_leaves_nothing(job, scans, tmp_path):
  with (
    mock.patch.object(
      thumbnails, 'write_metadata', side_effect=KeyboardInterrupt
    ),
    pytest.raises(KeyboardInterrupt),
  ):
    job.run(scans, str(tmp_path / 'index'))
  assert os.listdir(tmp_path) == []
