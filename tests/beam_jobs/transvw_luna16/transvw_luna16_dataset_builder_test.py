"""The data set, built in this process from tiny scans."""

import collections
import hashlib
import os
import tempfile
from unittest import mock

from apache_beam.options import pipeline_options
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from beam_jobs import discovery
from beam_jobs import progress
from beam_jobs import transvw_luna16
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_SETTINGS = {
  'words': 3,
  'instances': 3,
  'validation_instances': 1,
  'xy_border': 4,
  'z_border': 4,
  'min_distance': 1.0,
}
_VOCABULARY_FILES = {
  'counters.json',
  'descriptors.npz',
  'instances.csv',
  'quality.json',
  'rejected.csv',
  'vocabulary.json',
}


class BuilderTest(tfds.testing.DatasetBuilderTestCase):
  """The checks that TFDS makes of each of its data sets."""

  DATASET_CLASS = transvw_luna16.Builder
  # 4 training scans give as many words, in 4 patients and 3 resolutions; and
  # 2 validation patients each.
  SPLITS = {schema.TRAIN: 4 * 4 * 3, schema.VALIDATION: 4 * 2}  # noqa: RUF012
  BUILDER_CONFIG_NAMES_TO_TEST = [  # noqa: RUF012
    transvw_luna16.Builder.builder_config_cls(name='near', min_distance=1)
  ]

  @classmethod
  def setUpClass(cls):
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.EXAMPLE_DIR = tiny_scans.write_luna16(folder.name)
    super().setUpClass()


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'), train=5)


def _build(scans, data_dir, *, download=None, **fields):
  fields = _SETTINGS | {'name': 'tiny'} | fields
  builder = transvw_luna16.Builder(
    data_dir=os.fspath(data_dir),
    config=transvw_luna16.Builder.builder_config_cls(**fields),
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=os.fspath(scans),
      beam_options=pipeline_options.PipelineOptions(['--runner=FnApiRunner']),
      **(download or {}),
    )
  )
  return builder


@pytest.fixture(scope='module')
def built(scans, tmp_path_factory):
  """A builder whose data are there."""
  return _build(scans, tmp_path_factory.mktemp('data'))


def _hashes(builder):
  """Returns the hash of each file but those that hold a date or a path."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in builder.data_path.iterdir()
    if path.name not in ('dataset_info.json', 'config.json')
  }


def _records(builder, split):
  """Returns the raw records of a split in the order of its shards."""
  paths = sorted(map(str, builder.data_path.glob(f'*-{split}.tfrecord-*')))
  return list(tf.data.TFRecordDataset(paths).as_numpy_iterator())


def _examples(builder):
  for split in (schema.TRAIN, schema.VALIDATION):
    for example in tfds.as_numpy(builder.as_dataset(split=split)):
      yield split, example


def test_what_killed_builds_left_is_removed(scans, tmp_path):
  """And so is not what other data sets, or versions, are made of."""
  folder = tmp_path / 'transvw_luna16' / 'tiny'
  for name in ('incomplete.ABCDEF_1.0.0', 'incomplete.ABCDEF_2.0.0'):
    (folder / name / 'cubes.tmp').mkdir(parents=True)
  builder = _build(scans, tmp_path)
  assert sorted(os.listdir(folder)) == ['1.0.0', 'incomplete.ABCDEF_2.0.0']
  assert builder.info.splits[schema.TRAIN].num_examples > 0


def test_one_build_of_a_data_set_at_a_time(scans, tmp_path):
  folder = tmp_path / 'transvw_luna16' / 'tiny'
  with (
    output_lock.hold(str(folder)),
    pytest.raises(
      errors.UserError, match=r'another run is writing to .*1\.0\.0'
    ),
  ):
    _build(scans, tmp_path)
  assert os.listdir(folder) == []


def test_what_is_built_is_loaded_by_many_at_a_time(scans, built):
  data_dir = built.data_path.parents[2]
  with output_lock.hold(os.fspath(built.data_path.parent)):
    again = _build(scans, data_dir)
    assert _hashes(again) == _hashes(built)
    with pytest.raises(errors.UserError, match='another run is writing to'):
      _build(
        scans,
        data_dir,
        download={
          'download_mode': tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS
        },
      )


def test_the_folder_holds_shards_and_vocabulary_and_nothing_else(built):
  names = {path.name for path in built.data_path.iterdir()}
  assert names == _VOCABULARY_FILES | {
    'config.json',
    'dataset_info.json',
    'features.json',
    'word.labels.txt',
    'transvw_luna16-train.tfrecord-00000-of-00001',
    'transvw_luna16-validation.tfrecord-00000-of-00001',
  }
  config_folder = built.data_path.parent
  assert os.listdir(config_folder) == ['1.0.0']


def test_features_and_splits(built):
  spec = built.as_dataset(split=schema.TRAIN).element_spec
  assert {
    name: (tuple(one.shape), one.dtype) for name, one in spec.items()
  } == {
    'cube': ((64, 64, 32), tf.int16),
    'word': ((), tf.int64),
    'scan_id': ((), tf.string),
    'resolution': ((), tf.int32),
    'origin': ((3,), tf.int32),
    'size': ((3,), tf.int32),
    'spacing': ((3,), tf.float32),
    'rank': ((), tf.int32),
    'distance': ((), tf.float32),
  }
  assert built.info.features['word'].num_classes == 3
  assert built.info.features['word'].names == ['0000', '0001', '0002']
  assert built.info.splits[schema.TRAIN].num_examples == 3 * 3 * 3
  assert built.info.splits[schema.VALIDATION].num_examples == 3


def test_examples_are_the_cubes_that_the_vocabulary_lists(built, scans):
  words = vocabulary.read_vocabulary(os.fspath(built.data_path))
  listed = {
    (one.split, one.scan_id, one.word, one.resolution): one
    for one in words.instances
  }
  files = {one.scan_id: one for one in luna16.find_scans(scans)}
  seen = set()
  for split, example in _examples(built):
    scan_id = example['scan_id'].decode()
    key = (split, scan_id, int(example['word']), int(example['resolution']))
    assert key not in seen
    seen.add(key)
    one = listed[key]
    assert tuple(example['origin']) == one.origin
    assert tuple(example['size']) == one.size
    assert example['rank'] == one.rank
    assert example['distance'] == np.float32(one.distance)
    assert files[scan_id].split == split
    scan = reader.read_scan(files[scan_id].path)
    assert tuple(example['spacing']) == scan.geometry.spacing
    np.testing.assert_allclose(
      example['cube'],
      tiny_scans.expected_cube(scan.hu, one.origin, one.size),
      atol=0.501,
    )
  assert seen == set(listed)
  assert {key[3] for key in seen if key[0] == schema.TRAIN} == {0, 1, 2}
  assert {key[3] for key in seen if key[0] == schema.VALIDATION} == {0}


def test_it_loads_without_the_scans(built):
  root = os.fspath(built.data_path.parent.parent.parent)
  loaded = tfds.load('transvw_luna16/tiny', split='train[:10%]', data_dir=root)
  assert loaded.cardinality() == 3  # of 27
  bare = tfds.builder_from_directory(os.fspath(built.data_path))
  assert bare.info.features['word'].num_classes == 3
  pairs = bare.as_dataset(split=schema.VALIDATION, as_supervised=True)
  cubes, words = zip(*tfds.as_numpy(pairs), strict=True)
  assert {cube.dtype for cube in cubes} == {np.dtype(np.int16)}
  assert sorted(words) == [0, 1, 2]


def test_finding_the_files_in_another_order_gives_the_same_shards(
  built, scans, tmp_path
):
  backward = luna16.find_scans(scans)[::-1]
  with mock.patch.object(luna16, 'find_scans', return_value=backward):
    other = _build(scans, tmp_path)
  assert _hashes(other) == _hashes(built)


def test_a_build_reads_each_scan_twice_and_no_other(scans, tmp_path):
  read_scan = mock.Mock(wraps=reader.read_scan)
  with mock.patch.object(reader, 'read_scan', read_scan):
    _build(scans, tmp_path, instances=5, validation_instances=2)
  reads = collections.Counter(call.args[0] for call in read_scan.mock_calls)
  assert reads == {
    one.path: 2
    for one in luna16.find_scans(scans)
    if one.split != schema.HELD_OUT
  }


def test_a_given_vocabulary_gives_the_same_shards(built, scans, tmp_path):
  folder = str(tmp_path / 'vocabulary')
  os.makedirs(folder)
  settings = settings_lib.Settings(**_SETTINGS)
  discovery.discover(luna16.find_scans(scans), folder, settings)
  with mock.patch.object(discovery, 'discover') as discover:
    other = _build(scans, tmp_path / 'data', vocabulary=folder)
  discover.assert_not_called()
  assert _hashes(other) == _hashes(built)


def test_both_writers_write_the_same_records(scans, tmp_path):
  three = {'num_shards': 3}
  disk = _build(scans, tmp_path / 'disk', download=three)
  beam = _build(scans, tmp_path / 'beam', download=three, writer='beam')
  for split in (schema.TRAIN, schema.VALIDATION):
    # Not the shards: they begin at different records.
    assert _records(disk, split) == _records(beam, split)
  assert not (beam.data_path / 'cubes.tmp').exists()


def test_an_extended_vocabulary_keeps_its_cubes(built, scans, tmp_path):
  more = _build(scans, tmp_path, words=4, extend=os.fspath(built.data_path))
  assert more.info.features['word'].num_classes == 4

  def cubes(builder):
    return {
      (split, one['scan_id'], one['word'], one['resolution']): (
        one['cube'].tobytes()
      )
      for split, one in _examples(builder)
      if one['word'] < 3
    }

  assert cubes(more) == cubes(built)


def test_the_quality_of_the_words_is_beside_them(built):
  found = quality.read_quality(os.fspath(built.data_path))
  assert list(found.words) == [0, 1, 2]
  air = {word: [] for word in found.words}
  for _, example in _examples(built):
    if example['resolution'] == 0:
      air[int(example['word'])].append(np.mean(example['cube'] <= -950))
  for word, scores in found.words.items():
    assert scores.cubes == len(air[word]) == 4
    assert scores.air == pytest.approx(np.mean(air[word]), abs=1e-6)
  assert found.overall.error_mm is None


def test_a_capped_data_set_leaves_no_cubes_behind(built, scans, tmp_path):
  capped = _build(scans, tmp_path, download={'max_examples_per_split': 2})
  assert capped.info.splits[schema.TRAIN].num_examples == 2
  assert _hashes(capped).keys() == _hashes(built).keys()


def test_a_data_set_without_validation_scans(tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans', validation=0)
  builder = _build(scans, tmp_path / 'data')
  assert list(builder.info.splits) == [schema.TRAIN]


def _fails(scans, data_dir, line, **fields):
  """Checks that a build ends with a line and leaves nothing to load."""
  with pytest.raises(errors.UserError, match=line) as caught:
    _build(scans, data_dir, **fields)
  assert '\n' not in str(caught.value)
  left = [
    os.path.join(folder, name)
    for folder, _, names in os.walk(data_dir)
    for name in names
  ]
  # TFDS notes which config is the default one before it begins.
  assert [os.path.basename(path) for path in left] in ([], ['metadata.json'])
  root = os.path.join(data_dir, 'transvw_luna16', 'tiny')
  assert not os.path.exists(root) or os.listdir(root) == []


def _scans_of(builder):
  """Returns the ids of the scans that have cubes."""
  words = vocabulary.read_vocabulary(os.fspath(builder.data_path))
  return {one.scan_id for one in words.instances}


def _stored_bytes(scans, scan_ids=None):
  """Returns what scans that are not held out take, by the file system."""
  count = 0
  for one in luna16.find_scans(scans):
    raw = one.path.removesuffix('.mhd') + '.raw'
    if one.split != schema.HELD_OUT and (
      scan_ids is None or one.scan_id in scan_ids
    ):
      count += os.path.getsize(one.path)
      count += os.path.getsize(raw) if os.path.exists(raw) else 0
  return count


def test_bad_scans_are_left_out(built, tmp_path, capsys):
  scans = tiny_scans.write_luna16(tmp_path / 'scans', train=5)
  expected = tiny_scans.write_bad(tmp_path / 'scans' / 'subset1')
  other = _build(scans, tmp_path / 'data')
  printed = capsys.readouterr().out
  assert 'scans: 12 read, 5 rejected (1 missing_raw, 1 not_3d, ' in printed
  rejected = (other.data_path / 'rejected.csv').read_text().splitlines()
  assert rejected[0] == 'scan,reason,detail'
  assert {tuple(line.split(',')[:2]) for line in rejected[1:]} == set(
    expected.items()
  )
  mine, good = _hashes(other), _hashes(built)
  for name in ('rejected.csv', 'counters.json'):
    assert mine.pop(name) != good.pop(name)
  assert progress.read_counters(os.fspath(other.data_path)) == {
    'discovery': {
      'scans_read': 12,
      'bytes_read': _stored_bytes(scans),
      'rejected': {reason: 1 for reason in expected.values()},
      'reduced_borders': 0,
      'relaxed_filters': 0,
    },
    'cubes': {
      'scans_read': len(_scans_of(other)),
      'bytes_read': _stored_bytes(scans, _scans_of(other)),
      'cubes': {schema.TRAIN: 27, schema.VALIDATION: 3},
    },
  }
  assert mine == good
  _fails(
    scans,
    tmp_path / 'strict',
    r'strict: a scan cannot be used: \w+: .*subset1',
    strict=True,
  )


def test_no_usable_scan(tmp_path):
  tiny_scans.write_luna16(tmp_path / 'scans', train=0)
  (tmp_path / 'scans' / 'subset1').mkdir()
  tiny_scans.write_bad(tmp_path / 'scans' / 'subset1')
  _fails(
    tmp_path / 'scans',
    tmp_path / 'data',
    '0 usable training scans, at least 2 are needed; 7 scans were read, 5 rej',
  )


def test_wrong_folders(tmp_path):
  _fails(
    tmp_path / 'gone',
    tmp_path / 'data',
    'Manual directory .*gone does not exist or is empty. --manual_dir must',
  )
  (tmp_path / 'other' / 'pictures').mkdir(parents=True)
  _fails(tmp_path / 'other', tmp_path / 'data', 'no scan found in .*other; exp')


def test_wrong_vocabularies(built, scans, tmp_path):
  folder = os.fspath(built.data_path)
  data_dir = tmp_path / 'data'
  _fails(scans, data_dir, 'no vocabulary in', vocabulary=str(tmp_path))
  _fails(
    scans,
    data_dir,
    'words is 2, but .* made with 3',
    vocabulary=folder,
    words=2,
  )
  # As many scans, but the one with the largest number has another name.
  other = tiny_scans.write_luna16(tmp_path / 'scans', train=2)
  _fails(
    other, data_dir, 'the vocabulary needs scan 1.2.840', vocabulary=folder
  )
  # A scan is no longer what it was.
  same = tiny_scans.write_luna16(tmp_path / 'same', train=5)
  os.remove(os.path.join(same, 'subset0', '1.2.840.000.raw'))
  _fails(
    same,
    data_dir,
    r'no cubes can be cut: .*missing_raw: .*1\.2\.840\.000\.mhd',
    vocabulary=folder,
  )
