"""Plans, against what jobs really do."""

import collections
import contextlib
import os
import shutil
import threading
import time
from unittest import mock

from apache_beam.options import pipeline_options
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle as tfds_shuffle

from beam_jobs import plan
from beam_jobs import transvw_luna16
from beam_jobs import word_plan
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import stored_bytes

_SETTINGS = {
  **{'words': 3, 'instances': 4, 'validation_instances': 1},
  **{'xy_border': 4, 'z_border': 4, 'min_distance': 1.0},
}


@pytest.fixture(scope='module', name='scans')
def _scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'), train=5)


def _build(scans, data_dir, **fields):
  builder = transvw_luna16.Builder(
    data_dir=os.fspath(data_dir),
    config=transvw_luna16.Builder.builder_config_cls(
      **_SETTINGS | {'name': 'tiny'} | fields
    ),
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=os.fspath(scans),
      beam_options=pipeline_options.PipelineOptions(['--runner=FnApiRunner']),
    )
  )
  return builder


def _taken(folder):
  """Returns the bytes of all files, in blocks."""
  taken = 0
  for at, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        taken += os.stat(os.path.join(at, name)).st_blocks * 512
  return taken


class _Peak:
  """Watches the most that a folder takes while a block runs."""

  def __init__(self, folder):
    self._folder = folder
    self.bytes = 0
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run)

  def _run(self):
    while not self._stop.wait(0.001):
      self.bytes = max(self.bytes, _taken(self._folder))

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()


@pytest.mark.parametrize(
  'writer', ['disk', pytest.param('beam', marks=pytest.mark.long)]
)
def test_the_disk_holds_no_more_than_planned(
  scans, tmp_path, monkeypatch, writer
):
  # So that the shuffle of TFDS goes over the disk, as with 1 GB and more.
  monkeypatch.setattr(tfds_shuffle, 'MAX_MEM_BUFFER_SIZE', 1 << 20)
  made = []
  make = plan.make
  monkeypatch.setattr(
    plan, 'make', lambda **named: made.append(make(**named)) or made[-1]
  )
  with _Peak(tmp_path) as peak:
    _build(scans, tmp_path, writer=writer)
  (planned,) = made
  cubes = 3 * (4 * 3 + 1)
  whole = cubes * 2 * 64 * 64 * 32
  # Besides the cubes: a scan of all words on its way, summaries, and 4 kB for
  # each of the 1,000 files that a shuffle may have.
  extra = 9 * 2 * 64 * 64 * 32 + 6 * 100_000 + 1_100 * 4096 + 2_000_000
  expected = whole * (2 if writer == 'beam' else 1)
  assert expected < peak.bytes * 1.25
  assert peak.bytes <= planned.needed_bytes <= expected + extra
  assert _taken(tmp_path) <= planned.needed_bytes


def test_cubes_shards_and_records_are_those_of_the_data_set(scans, tmp_path):
  builder = _build(scans, tmp_path, instances=200, validation_instances=30)
  settings = settings_lib.Settings(
    **_SETTINGS | {'instances': 200, 'validation_instances': 30}
  )
  wanted = [one for one in luna16.find_scans(scans) if one.split != 'held_out']
  counts = word_plan.count_most(wanted, settings)
  splits = builder.info.splits
  assert counts.by_split == {
    name: one.num_examples for name, one in splits.items()
  }
  records = [
    record
    for path in builder.data_path.glob('*.tfrecord-*')
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  ]
  longest = max(map(len, records))
  assert longest <= counts.record_bytes <= longest + 256
  assert sum(one.num_shards for one in splits.values()) == 2
  assert counts.text() == ('3 words, at most 51 cubes, 13.4 MB in 2 shards')


def test_the_published_numbers():
  scans = [
    luna16.ScanFile(f'1.{number:058d}', 'x.mhd', split)
    for split, count in (('train', 445), ('validation', 178))
    for number in range(count)
  ]
  counts = word_plan.count_most(scans, settings_lib.Settings())
  assert counts.text() == (
    '44 words, at most 27,720 cubes, 7.3 GB in 68 shards'
  )
  assert 7.27e9 < counts.needed_bytes('disk') < 7.4e9
  assert 14.5e9 < counts.needed_bytes('beam') < 14.7e9


@pytest.mark.parametrize(
  ('train', 'validation', 'cubes'),
  [(0, 3, 0), (1, 0, 3), (2, 1, 2 * 2 * 3 + 2), (50, 40, 44 * (150 + 30))],
)
def test_the_most_cubes_of_few_scans(train, validation, cubes):
  scans = [
    luna16.ScanFile(f'{split}{number}', 'x.mhd', split)
    for split, count in (('train', train), ('validation', validation))
    for number in range(count)
  ]
  counts = word_plan.count_most(scans, settings_lib.Settings())
  assert counts.cubes == cubes


def test_the_line_says_it_all(capsys, monkeypatch):
  one = plan.Plan(
    reads='888 scans, 118.2 GB to read twice',
    makes='44 words',
    seconds=15_000.0,
    seconds_alone=300.0,
    workers=2,
    needed_bytes=7_300_000_000,
    folder='/data',
    free_bytes=312_000_000_000,
  )
  assert one.line() == (
    'plan: 888 scans, 118.2 GB to read twice; 44 words; about 2 h 10 min with 2'
    ' workers; needs 7.3 GB, 312.0 GB free in /data'
  )
  assert plan.time_text(120.0, 0.0, 1) == 'about 2 min with 1 worker'
  assert plan.time_text(120.0, 60.0, None) == (
    'about 3 min of work for one worker'
  )
  assert plan.time_text(None, 9.0, 1) == (
    'time unknown, for no scan could be probed'
  )


@pytest.mark.parametrize(
  ('arguments', 'workers'),
  [
    ([], 1),
    (['--direct_num_workers=4'], 1),  # which in_memory passes over
    (
      ['--direct_num_workers=4', '--direct_running_mode=multi_processing'],
      4,
    ),
    (
      [
        *('--runner=apache_beam.runners.direct.DirectRunner',),
        *('--direct_num_workers=0', '--direct_running_mode=multi_threading'),
      ],
      os.cpu_count(),
    ),
    (
      [
        *('--runner=fnapirunner', '--direct_num_workers=3'),
        '--direct_running_mode=multi_processing',
      ],
      3,
    ),
    (['--runner=PortableRunner', '--job_endpoint=localhost:1'], None),
  ],
)
def test_workers_are_those_of_the_options(arguments, workers):
  options = pipeline_options.PipelineOptions(arguments)
  assert plan.count_workers(options) == workers


def test_no_options_are_one_worker():
  assert plan.count_workers(None) == 1


def test_too_small_a_disk_is_refused(tmp_path, monkeypatch):
  asked = []

  def usage(path):
    asked.append(os.fspath(path))
    return collections.namedtuple('usage', 'total used free')(9, 8, 1_000)

  monkeypatch.setattr(shutil, 'disk_usage', usage)
  plan.check_space(1000, str(tmp_path))
  with pytest.raises(
    errors.UserError,
    match=r' has 1\.0 kB free, but the job needs up to 1\.5 kB there; free',
  ):
    plan.check_space(1500, str(tmp_path / 'not' / 'yet'))
  # The nearest folder that is there.
  assert asked == [str(tmp_path)] * 2


def test_the_probe_takes_the_same_scans_and_passes_over_bad_ones(tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans', train=3)
  bad = tiny_scans.write_bad(tmp_path / 'scans' / 'subset0')
  found = luna16.find_scans(scans)

  def work(scan_file):
    tried.append(scan_file.scan_id)
    reader.read_scan(scan_file.path)
    return scan_file.scan_id

  results = []
  for files in (found, found[::-1]):
    tried = []
    results.append((plan.probe(files, work), tried))
  assert results[0] == results[1]
  probed, tried = results[0]
  assert 1 <= len(probed) <= 2
  assert len(tried) <= 4
  assert [one for one in tried if one not in bad] == probed
  only_bad = [one for one in found if one.scan_id in bad]
  assert plan.probe(only_bad, work) == []
  assert plan.scale([], only_bad) is None


def test_time_is_scaled_by_bytes(tmp_path):
  folder = tmp_path / 'train'
  sizes = ((64, 64, 32), (128, 64, 32), (64, 64, 64))
  files = []
  for number, size in enumerate(sizes):
    scan_id = tiny_scans.write_scan(folder, number, size)
    files.append(luna16.ScanFile(scan_id, f'{folder}/{scan_id}.mhd', 'train'))
  seconds = plan.scale([plan.Reading(files[0], 3.0)], files)
  assert seconds == pytest.approx(15.0, rel=0.01)
  # Where no size is known, by number.
  gone = [luna16.ScanFile(str(n), f's3://bucket/{n}', 'train') for n in (1, 2)]
  readings = [plan.Reading(gone[0], 2.0, 0.5), plan.Reading(gone[1], 4.0, 1.5)]
  assert plan.scale(readings, gone * 5) == 30.0
  assert plan.mean_cube_seconds(readings) == 1.0


def test_stored_bytes_are_those_of_all_files_of_a_scan(tmp_path):
  scan_id = tiny_scans.write_scan(tmp_path, 0)
  paths = [tmp_path / f'{scan_id}{suffix}' for suffix in ('.mhd', '.raw')]
  size = sum(path.stat().st_size for path in paths)
  assert stored_bytes.count(paths[0]) == size
  scan = reader.read_scan(paths[0])
  one = tmp_path / 'one.nii.gz'
  reader.write_scan(str(one), scan.hu, scan.geometry)
  assert stored_bytes.count(one) == one.stat().st_size
  np.save(tmp_path / 'two.npy', scan.hu)
  assert stored_bytes.count(tmp_path / 'two.npy') == os.path.getsize(
    tmp_path / 'two.npy'
  )
  series = tmp_path / 'series'
  series.mkdir()
  (series / '1.dcm').write_bytes(b'x' * 100)
  (series / '2.dcm').write_bytes(b'x' * 50)
  assert stored_bytes.count(series) == 150
  paths[1].unlink()
  assert stored_bytes.count(paths[0]) == paths[0].stat().st_size
  assert stored_bytes.count(tmp_path / 'gone.mhd') == 0


def test_the_disk_is_tried_without_a_trace(tmp_path):
  start = time.monotonic()
  seconds = plan.disk_seconds(str(tmp_path / 'not' / 'yet'), 1 << 40)
  assert os.listdir(tmp_path) == []
  # 16 MB of 1 TB were written.
  assert 0 < seconds / 65_536 <= time.monotonic() - start
  assert plan.disk_seconds(str(tmp_path), 1000) == 0.0
  with mock.patch.object(os, 'fsync', side_effect=OSError(28, 'No space')):
    assert plan.disk_seconds(str(tmp_path), 1 << 40) == 0.0
  assert os.listdir(tmp_path) == []
  with mock.patch.object(plan, 'free_bytes', return_value=10_000_000):
    assert plan.disk_seconds(str(tmp_path), 1 << 40) == 0.0
