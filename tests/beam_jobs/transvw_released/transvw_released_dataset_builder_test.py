"""The data set, built in this process from tiny files as they are released."""

import copy
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import file_utils

from beam_jobs import progress
from beam_jobs import transvw_luna16
from beam_jobs import transvw_released
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import released_npy

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
_TFDS = os.path.join(os.path.dirname(sys.executable), 'tfds')
_DATA1 = 'train_data1_vwGen_ex_ref_fold0.0.npy'
_LABEL1 = 'train_label1_vwGen_ex_ref_fold0.0.npy'

# As the published script leaves them: 3 patients per word, 2 for validation,
# and the last row of each file is lost.
_TRAIN = [0, 0, 0, 1, 1, 1, 2, 2]
_VALIDATION = [0, 0, 1, 1, 2]

_Config = transvw_released.Builder.builder_config_cls


def _value(split, resolution, row):
  """Returns the HU that fills a cube; each is another whole number."""
  return {'train': -900, 'validation': 500}[split] + 20 * resolution + row


def _write(folder, dtype=np.float64, train=_TRAIN, validation=_VALIDATION):
  """Writes files of fold 0 and returns the folder as text."""
  os.makedirs(folder, exist_ok=True)
  for split, resolution, labels in (
    ('train', 0, train),
    ('train', 1, train),
    ('train', 2, train),
    ('validation', 0, validation),
  ):
    cubes = np.empty((len(labels), *schema.CUBE_SHAPE), dtype)
    for row, cube in enumerate(cubes):
      cube[:] = (_value(split, resolution, row) + 1000) / 2000
    for kind, array in (
      ('data', cubes),
      ('label', np.asarray(labels, np.float64)[:, np.newaxis]),
    ):
      name = released_npy.file_name(kind, split, resolution, 0)
      np.save(os.path.join(folder, name), array)
  return os.fspath(folder)


class BuilderTest(tfds.testing.DatasetBuilderTestCase):
  """The checks that TFDS makes of each of its data sets."""

  DATASET_CLASS = transvw_released.Builder
  SPLITS = {  # noqa: RUF012
    schema.TRAIN: 3 * len(_TRAIN),
    schema.VALIDATION: len(_VALIDATION),
  }

  @classmethod
  def setUpClass(cls):
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.EXAMPLE_DIR = _write(folder.name)
    super().setUpClass()


def _build(manual_dir, data_dir, **fields):
  config = _Config(**({'name': 'tiny'} | fields))
  builder = transvw_released.Builder(
    data_dir=os.fspath(data_dir), config=config
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=os.fspath(manual_dir)
    )
  )
  return builder


def _hashes(builder):
  """Returns the hash of each file but the one that holds a date."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in builder.data_path.iterdir()
    if path.name != 'dataset_info.json'
  }


def _examples(builder, split):
  return list(tfds.as_numpy(builder.as_dataset(split=split)))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_every_row_becomes_an_example(tmp_path, dtype):
  builder = _build(_write(tmp_path / 'npy', dtype), tmp_path / 'data')
  assert builder.info.features['word'].names == ['0000', '0001', '0002']
  for split, labels, resolutions in (
    ('train', _TRAIN, (0, 1, 2)),
    ('validation', _VALIDATION, (0,)),
  ):
    seen = set()
    for one in _examples(builder, split):
      resolution, word = int(one['resolution']), int(one['word'])
      row = int(one['scan_id'].decode().rpartition('-row')[2])
      seen.add((resolution, row))
      assert one['scan_id'].decode() == f'released-{split}-fold0-row{row}'
      assert (one['cube'] == _value(split, resolution, row)).all()
      assert word == labels[row]
      assert one['rank'] == row - labels.index(word)
      # What the files do not tell.
      np.testing.assert_array_equal(one['origin'], [-1, -1, -1])
      np.testing.assert_array_equal(
        one['size'], [-1, -1, -1] if resolution else schema.CUBE_SHAPE
      )
      assert np.isnan(one['spacing']).all() and np.isnan(one['distance'])
    rows = range(len(labels))
    assert seen == {(level, row) for level in resolutions for row in rows}


def test_features_and_splits_are_those_of_transvw_luna16(tmp_path):
  ours, other = (
    module.Builder(data_dir=os.fspath(tmp_path)).info
    for module in (transvw_released, transvw_luna16)
  )
  assert ours.features.to_json() == other.features.to_json()
  assert ours.supervised_keys == other.supervised_keys


def test_a_name_stands_for_one_config(tmp_path):
  folder = _write(tmp_path / 'npy')
  built = _build(folder, tmp_path / 'data', name='mine', words=3)
  again = _build(folder, tmp_path / 'data', name='mine', words=3)
  assert _hashes(again) == _hashes(built)
  with pytest.raises(
    errors.UserError, match='built with words 3, now it is 2: give the config'
  ):
    _build(folder, tmp_path / 'data', name='mine', words=2)
  # Of a data set built before that was written down nobody knows.
  (tmp_path / 'data/transvw_released/mine/1.0.0/config.json').unlink()
  _build(folder, tmp_path / 'data', name='mine', words=2)


def test_the_lost_row_is_told(tmp_path, capsys):
  folder = _write(tmp_path / 'npy')
  _build(folder, tmp_path / 'data')
  printed = capsys.readouterr().out
  assert 'words: 3, cubes: 29\n' in printed
  path = os.path.join(folder, _DATA1)
  assert f'note: {path} has 2 rows of its last word, 2, and 3 of the' in printed
  assert printed.count('note: ') == 4  # 3 resolutions and validation
  # Files that are whole say nothing.
  folder = _write(tmp_path / 'whole', train=[0, 0, 1, 1], validation=[0, 1])
  _build(folder, tmp_path / 'other')
  printed = capsys.readouterr().out
  assert 'words: 2, cubes: 14\n' in printed and 'note' not in printed


def test_the_first_words(tmp_path, capsys):
  builder = _build(_write(tmp_path / 'npy'), tmp_path / 'data', words=2)
  assert builder.info.features['word'].names == ['0000', '0001']
  train = _examples(builder, schema.TRAIN)
  assert sorted(int(one['word']) for one in train) == [0] * 9 + [1] * 9
  assert builder.info.splits[schema.VALIDATION].num_examples == 4
  printed = capsys.readouterr().out
  assert 'words: 2, cubes: 22\n' in printed and 'note' not in printed


def test_words_in_a_second_file(tmp_path, monkeypatch):
  monkeypatch.setattr(released_npy, 'WORDS_PER_FILE', 3)
  folder = _write(tmp_path / 'npy')
  for name in os.listdir(folder):
    array = np.load(os.path.join(folder, name))
    array = array + 3.0 if '_label' in name else array[::-1]
    np.save(os.path.join(folder, name.replace('fold0', 'fold1')), array)
  builder = _build(folder, tmp_path / 'data', words=5)
  train = _examples(builder, schema.TRAIN)
  # 8 rows of the first file, 6 of the first two words of the second.
  assert len(train) == 3 * (8 + 6)
  (one,) = (
    one
    for one in train
    if one['scan_id'] == b'released-train-fold1-row3' and not one['resolution']
  )
  assert one['word'] == 4 and one['rank'] == 0
  assert (one['cube'] == _value('train', 0, 4)).all()
  one = _build(folder, tmp_path / 'first', words=3)
  assert one.info.splits[schema.TRAIN].num_examples == 3 * 8


def test_what_a_killed_build_left_is_removed(tmp_path):
  version = tmp_path / 'data' / 'transvw_released' / 'tiny' / '1.0.0'
  # As TFDS names the folder of a build that is not finished.
  left = pathlib.Path(file_utils._get_incomplete_dir(version))
  left.mkdir(parents=True)
  (left / 'bucket.tmp').write_text('cubes')
  builder = _build(_write(tmp_path / 'npy'), tmp_path / 'data')
  assert os.listdir(version.parent) == ['1.0.0']
  assert progress.read_counters(os.fspath(builder.data_path)) == {
    'cubes': {
      'words': 3,
      'cubes': {
        schema.TRAIN: 3 * len(_TRAIN),
        schema.VALIDATION: len(_VALIDATION),
      },
    }
  }


def test_two_builds_give_the_same_files(tmp_path):
  one = _build(_write(tmp_path / 'npy'), tmp_path / 'one')
  two = _build(_write(tmp_path / 'copy', np.float32), tmp_path / 'two')
  assert _hashes(one) == _hashes(two)
  # Two shards, features, names of the words, counters, fields of the config.
  assert len(_hashes(one)) == 6


def test_without_validation_files(tmp_path):
  folder = _write(tmp_path / 'npy')
  for kind in ('data', 'label'):
    name = released_npy.file_name(kind, schema.VALIDATION, 0, 0)
    os.remove(os.path.join(folder, name))
  builder = _build(folder, tmp_path / 'data')
  assert list(builder.info.splits) == [schema.TRAIN]


def _fails(folder, data_dir, *texts, **fields):
  """Checks that a build ends with a line and leaves nothing to load."""
  with pytest.raises(errors.UserError) as caught:
    _build(folder, data_dir, **fields)
  for text in texts:
    assert text in str(caught.value)
  assert '\n' not in str(caught.value)
  root = os.path.join(data_dir, 'transvw_released', 'tiny')
  assert not os.path.exists(root) or os.listdir(root) == []


def test_a_data_set_is_not_built_in_a_bucket(tmp_path):
  builder = transvw_released.Builder(
    data_dir=os.fspath(tmp_path / 'data'), config=_Config(name='tiny')
  )
  manual = mock.Mock(manual_dir=_write(tmp_path / 'npy'), _manual_dir=None)
  with (
    mock.patch.object(type(builder), 'data_path', 's3://bucket/data/1.0.0'),
    pytest.raises(errors.UserError, match='is an address, wanted a folder'),
  ):
    builder._split_generators(manual)


def test_a_wrong_value_ends_the_build(tmp_path):
  folder = _write(tmp_path / 'npy')
  cubes = np.load(os.path.join(folder, _DATA1))
  cubes[6, 1, 2, 3] = np.nan
  np.save(os.path.join(folder, _DATA1), cubes)
  line = f'{os.path.join(folder, _DATA1)} row 6 has values nan .. nan; clipped'
  _fails(folder, tmp_path / 'data', line)


def test_wrong_labels_end_the_build(tmp_path):
  folder = _write(tmp_path / 'npy')
  labels = np.asarray([0, 0, 0, 1, 1, 1, 2, 50.0])[:, np.newaxis]
  np.save(os.path.join(folder, _LABEL1), labels)
  _fails(folder, tmp_path / 'data', f'{_LABEL1} row 7 has label 50; a whole')


def test_more_words_than_there_are(tmp_path):
  folder = _write(tmp_path / 'npy')
  text = 'config field words is 4, but the files hold 3 words; give that or'
  _fails(folder, tmp_path / 'data', text, words=4)


def test_wrong_folders(tmp_path):
  text = 'does not exist or is empty. --manual_dir must hold the released .npy'
  _fails(tmp_path / 'gone', tmp_path / 'data', text, _DATA1)
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'a.txt').write_text('a')
  _fails(tmp_path / 'other', tmp_path / 'data', 'no released training data in')


@pytest.mark.parametrize(
  ('fields', 'line'),
  [
    ({'wrods': 3}, 'unknown config field "wrods"; known are name, words'),
    ({'words': '3'}, "words must be an integer, at least 1, got '3'"),
    ({'words': True}, 'words must be an integer, at least 1, got True'),
    ({'words': 0}, 'words must be an integer, at least 1, got 0'),
  ],
)
def test_wrong_fields_are_named(fields, line):
  with pytest.raises(errors.UserError, match=line):
    _Config(name='mine', **fields)


def test_a_config_has_a_name_and_can_be_copied():
  with pytest.raises(errors.UserError, match='a config needs a name'):
    _Config(words=3)
  config = _Config(name='mine', words=3)
  for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
    assert copied == config
  (default,) = transvw_released.Builder.BUILDER_CONFIGS
  assert (default.name, default.words) == ('default', None)


def test_the_command_in_the_folder(tmp_path):
  folder = _write(tmp_path / 'npy')
  done = subprocess.run(
    [
      *(_TFDS, 'build', 'transvw_released', f'--manual_dir={folder}'),
      *(f'--data_dir={tmp_path}', '--config={"name": "one", "words": 1}'),
    ],
    cwd=os.path.join(_ROOT, 'beam_jobs'),
    capture_output=True,
    text=True,
    encoding='utf-8',  # a bar of progress on a slow machine
    stdin=subprocess.DEVNULL,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'words: 1, cubes: 11\n' in done.stdout
  folder = os.path.join(tmp_path, 'transvw_released', 'one', '1.0.0')
  splits = tfds.builder_from_directory(folder).info.splits
  assert splits[schema.TRAIN].num_examples == 9
