"""Batches: every cube once, in an order that seed and epoch decide."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.training import input_pipeline


def _read(data_dir, split='train', batch_size=4, **settings):
  dataset = input_pipeline.make_dataset(
    data_dir, split, batch_size, shuffle_buffer=8, **settings
  )
  return list(dataset.as_numpy_iterator())


def _join(batches, name):
  return np.concatenate([batch[name] for batch in batches])


def _known(seed):
  """Returns cubes as training sees them by their bytes, and their words."""
  count = {1: tiny_data.TRAIN_CUBES, 2: tiny_data.VALIDATION_CUBES}[seed]
  cubes, words = tiny_data.make_cubes(count, seed)
  scaled = ((cubes.astype(np.float32) + 1000) / 2000)[..., np.newaxis]
  return {
    cube.tobytes(): word for cube, word in zip(scaled, words, strict=True)
  }


def test_what_is_in_a_data_set(data_dir):
  data = input_pipeline.open_data(data_dir)
  assert data.volume == 'cube'
  assert data.shape == tiny_data.CUBE_SHAPE
  assert data.words == tiny_data.WORDS
  assert data.sizes == {'train': 18, 'validation': 7}
  # Any folder above will do.
  above = os.path.dirname(os.path.dirname(os.path.dirname(data_dir)))
  assert input_pipeline.open_data(above).data_dir == data_dir


def test_training_batches(data_dir):
  batches = _read(data_dir)
  assert [batch['cube'].shape for batch in batches] == [(4, 16, 16, 8, 1)] * 4
  assert batches[0]['cube'].dtype == batches[0]['weight'].dtype == np.float32
  assert batches[0]['word'].dtype == batches[0]['index'].dtype == np.int32
  np.testing.assert_array_equal(_join(batches, 'index'), np.arange(16))
  assert _join(batches, 'weight').tolist() == [1] * 16
  # 16 of the 18 cubes, each once, with its own word.
  known = _known(seed=1)
  cubes = [cube.tobytes() for cube in _join(batches, 'cube')]
  assert len(set(cubes)) == 16
  words = _join(batches, 'word').tolist()
  assert words == [known[cube] for cube in cubes]


def test_validation_keeps_every_cube_and_pads(data_dir):
  batches = _read(data_dir, 'validation')
  weights = _join(batches, 'weight')
  assert weights.tolist() == [1] * 7 + [0]
  known = _known(seed=2)
  cubes = [cube.tobytes() for cube in _join(batches, 'cube')[:7]]
  assert set(cubes) == set(known)
  again = _join(_read(data_dir, 'validation', seed=5, epoch=3), 'cube')
  np.testing.assert_array_equal(_join(batches, 'cube'), again)


def test_order_is_decided_by_seed_and_epoch(data_dir):
  first = _join(_read(data_dir, seed=1, epoch=1), 'cube')
  np.testing.assert_array_equal(
    first, _join(_read(data_dir, seed=1, epoch=1), 'cube')
  )
  for other in ({'seed': 2, 'epoch': 1}, {'seed': 1, 'epoch': 2}):
    assert not np.array_equal(first, _join(_read(data_dir, **other), 'cube'))
  # Not in the order of the words on disk either.
  words = _join(_read(data_dir), 'word')
  assert not np.array_equal(words, np.arange(16) % 3)


@pytest.mark.parametrize(('workers', 'replicas'), [(1, 2), (2, 2), (2, 4)])
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_workers_share_each_global_batch(data_dir, workers, replicas, split):
  whole = _read(data_dir, split, batch_size=8)
  parts = [
    _read(
      data_dir,
      split,
      batch_size=8,
      input_context=tf.distribute.InputContext(workers, worker, replicas),
    )
    for worker in range(workers)
  ]
  local = replicas // workers
  for number, batch in enumerate(whole):
    # Replicas in order: worker 0's, then worker 1's.
    joined = [
      replica['index']
      for part in parts
      for replica in part[number * local : (number + 1) * local]
    ]
    np.testing.assert_array_equal(np.concatenate(joined), batch['index'])
    assert all(len(one) == 8 // replicas for one in joined)


def test_steps_per_epoch(data_dir):
  data = input_pipeline.open_data(data_dir)
  assert input_pipeline.steps_per_epoch(data, 'train', 4) == 4
  assert input_pipeline.steps_per_epoch(data, 'validation', 4) == 2
  with pytest.raises(errors.UserError, match='fewer than a batch'):
    input_pipeline.steps_per_epoch(data, 'train', 19)
  with pytest.raises(errors.UserError, match="no cubes in split 'test'"):
    input_pipeline.steps_per_epoch(data, 'test', 4)


def test_missing_data_is_one_clear_line(data_dir, tmp_path):
  with pytest.raises(errors.UserError, match='add --data DIR'):
    input_pipeline.open_data('')
  with pytest.raises(errors.UserError, match='does not exist'):
    input_pipeline.open_data(str(tmp_path / 'nothing'))
  with pytest.raises(errors.UserError, match='no data set'):
    input_pipeline.open_data(str(tmp_path))
  for version in ('1.0.0', '1.0.1'):
    shutil.copytree(data_dir, tmp_path / 'tiny_cubes' / 'default' / version)
  with pytest.raises(errors.UserError, match='2 data sets below'):
    input_pipeline.open_data(str(tmp_path))


def test_a_half_written_data_set_is_not_opened(data_dir, tmp_path):
  folder = tmp_path / 'tiny_cubes' / 'default' / '1.0.0.incompleteABC'
  shutil.copytree(data_dir, folder)
  with pytest.raises(errors.UserError, match='no data set'):
    input_pipeline.open_data(str(tmp_path))


def test_damaged_metadata_is_one_clear_line(data_dir, tmp_path):
  folder = tmp_path / 'copy'
  shutil.copytree(data_dir, folder)
  (folder / 'features.json').write_text('{')
  with pytest.raises(errors.UserError, match='cannot be opened'):
    input_pipeline.open_data(str(folder))
