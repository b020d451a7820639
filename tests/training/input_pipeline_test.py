"""Batches: every cube once, in an order that seed and epoch decide."""

import glob
import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.training import built_data
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
  data = built_data.open_data(data_dir)
  assert data.volume == 'cube'
  assert data.shape == tiny_data.CUBE_SHAPE
  assert data.words == tiny_data.WORDS
  assert data.sizes == {'train': 18, 'validation': 7}
  # Any folder above will do.
  above = os.path.dirname(os.path.dirname(os.path.dirname(data_dir)))
  assert built_data.open_data(above).data_dir == data_dir


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


def test_other_features_keep_their_values(tmp_path):
  features = ('cube', 'mask', 'label', 'scan_id', 'place')
  data = built_data.open_data(tiny_data.write_targets(tmp_path), features)
  (batch,) = _read(data, 'test', batch_size=10)
  examples = tfds.as_numpy(data.builder.as_dataset(split='test'))
  known = {tuple(one['place'].tolist()): one for one in examples}
  assert batch['place'].dtype == np.float64
  assert batch['label'].dtype == np.int32
  assert batch['mask'].dtype == np.float32
  found = [known.pop(tuple(place)) for place in batch['place'].tolist()]
  assert not known
  for name in ('label', 'scan_id'):
    assert batch[name].tolist() == [one[name] for one in found]
  masks = np.stack([one['mask'] for one in found])
  np.testing.assert_array_equal(batch['mask'][..., 0], masks)


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


def test_an_epoch_can_be_read_twice(data_dir):
  dataset = input_pipeline.make_dataset(data_dir, 'train', 4, shuffle_buffer=8)
  first, again = (_join(dataset.as_numpy_iterator(), 'cube') for _ in range(2))
  np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize('interleave', [1, 2, 16])
def test_shards_are_read_in_turn(data_dir, interleave):
  shards = [
    [
      tf.train.Example.FromString(record.numpy()).features.feature['cube']
      for record in tf.data.TFRecordDataset(path)
    ]
    for path in sorted(glob.glob(f'{data_dir}/*train.tfrecord*'))
  ]
  assert [len(shard) for shard in shards] == [9, 9]
  if interleave == 1:
    records = itertools.chain(*shards)
  else:
    records = itertools.chain(*zip(*shards, strict=True))
  wanted = [record.bytes_list.value[0] for record in records]
  data = built_data.open_data(data_dir)
  found = input_pipeline._order(data, 'train', interleave)
  for wanted_bytes, record in zip(wanted, found, strict=True):
    assert wanted_bytes in record.numpy()


def test_more_interleaved_shards_give_other_orders(data_dir):
  one, two = (
    _join(_read(data_dir, interleave=interleave), 'cube')
    for interleave in (1, 2)
  )
  assert not np.array_equal(one, two)


@pytest.mark.parametrize('split', ['train', 'validation'])
@pytest.mark.parametrize('cache', [None, 'memory'])
def test_steps_can_be_skipped(data_dir, split, cache):
  data = built_data.open_data(data_dir)
  settings = {'batch_size': 4, 'epoch': 3, 'cache': cache}
  whole = _read(data, split, **settings)
  for skip_steps in range(len(whole) + 1):
    left = _read(data, split, skip_steps=skip_steps, **settings)
    assert len(left) == len(whole) - skip_steps
    for batch, wanted in zip(left, whole[skip_steps:], strict=True):
      for name, value in wanted.items():
        np.testing.assert_array_equal(batch[name], value)


def _break_some(data, is_broken):
  """Replaces records, those at some places of epoch 0, by what is none."""
  _read(data, cache='memory')
  order = list(
    input_pipeline.make_dataset(
      data, 'train', 1, shuffle_buffer=8, cache='memory'
    )
    .map(lambda batch: batch['cube'][0])
    .as_numpy_iterator()
  )
  places = {cube.tobytes(): place for place, cube in enumerate(order)}
  records = data.records['train'].numpy()
  decode = data.make_decoder()
  for number, record in enumerate(records):
    cube = decode(record)['cube'].numpy()
    scaled = ((cube.astype(np.float32) + 1000) / 2000)[..., np.newaxis]
    if is_broken(places[scaled.tobytes()]):
      records[number] = b'none'
  data.records['train'] = tf.constant(records)


def test_what_is_skipped_is_not_decoded(data_dir):
  data = built_data.open_data(data_dir)
  wanted = _read(data, batch_size=4)[2:]
  _break_some(data, lambda place: place < 8)
  left = _read(data, skip_steps=2)
  np.testing.assert_array_equal(_join(left, 'cube'), _join(wanted, 'cube'))
  with pytest.raises(tf.errors.InvalidArgumentError):
    _read(data, skip_steps=1)


def test_what_another_worker_takes_is_not_decoded(data_dir):
  data = built_data.open_data(data_dir)
  context = tf.distribute.InputContext(2, 0, 2)
  wanted = _read(data, input_context=context)
  _break_some(data, lambda place: place % 4 >= 2)
  ours = _read(data, input_context=context)
  np.testing.assert_array_equal(_join(ours, 'cube'), _join(wanted, 'cube'))
  with pytest.raises(tf.errors.InvalidArgumentError):
    _read(data, input_context=tf.distribute.InputContext(2, 1, 2))


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_memory_gives_the_same_and_is_read_once(data_dir, tmp_path, split):
  folder = tmp_path / 'copy'
  shutil.copytree(data_dir, folder)
  data = built_data.open_data(str(folder))
  from_disk = [_read(data, split, epoch=epoch) for epoch in range(3)]
  assert not data.records
  in_memory = [_read(data, split, epoch=0, cache='memory')]
  shutil.rmtree(folder)
  in_memory += [
    _read(data, split, epoch=epoch, cache='memory') for epoch in (1, 2)
  ]
  for batches, wanted in zip(in_memory, from_disk, strict=True):
    for name in wanted[0]:
      np.testing.assert_array_equal(_join(batches, name), _join(wanted, name))


def test_wrong_settings_are_told(data_dir):
  with pytest.raises(errors.UserError, match=r"train.cache is 'disk', wanted"):
    _read(data_dir, cache='disk')
  with pytest.raises(errors.UserError, match=r'train.interleave is 0, wanted'):
    _read(data_dir, interleave=0)


def test_batches_are_mapped_in_order(data_dir):
  def add_inputs(batch):
    # The first batches take longest.
    rounds = 200 * (16 - batch['index'][0])
    zero = tf.while_loop(
      lambda count, _: count < rounds,
      lambda count, sum: (count + 1, sum + 0.0),
      (0, 0.0),
    )[1]
    return {**batch, 'inputs': 1 - batch['cube'] + zero}

  mapped = _read(data_dir, batch_size=2, map_batch=add_inputs)
  wanted = _read(data_dir, batch_size=2)
  for name in wanted[0]:
    np.testing.assert_array_equal(_join(mapped, name), _join(wanted, name))
  np.testing.assert_array_equal(
    _join(mapped, 'inputs'), 1 - _join(wanted, 'cube')
  )


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
    cubes = [
      replica['cube']
      for part in parts
      for replica in part[number * local : (number + 1) * local]
    ]
    np.testing.assert_array_equal(np.concatenate(cubes), batch['cube'])
    assert all(len(one) == 8 // replicas for one in joined)


def test_steps_per_epoch(data_dir):
  data = built_data.open_data(data_dir)
  assert input_pipeline.steps_per_epoch(data, 'train', 4) == 4
  assert input_pipeline.steps_per_epoch(data, 'validation', 4) == 2
  with pytest.raises(errors.UserError, match='fewer than a batch'):
    input_pipeline.steps_per_epoch(data, 'train', 19)
  with pytest.raises(errors.UserError, match="no cubes in split 'test'"):
    input_pipeline.steps_per_epoch(data, 'test', 4)


def test_missing_data_is_one_clear_line(data_dir, tmp_path):
  with pytest.raises(errors.UserError, match='add --data DIR'):
    built_data.open_data('')
  with pytest.raises(errors.UserError, match='does not exist'):
    built_data.open_data(str(tmp_path / 'nothing'))
  with pytest.raises(errors.UserError, match='no data set'):
    built_data.open_data(str(tmp_path))
  for version in ('1.0.0', '1.0.1'):
    shutil.copytree(data_dir, tmp_path / 'tiny_cubes' / 'default' / version)
  with pytest.raises(errors.UserError, match='2 data sets below'):
    built_data.open_data(str(tmp_path))


def test_a_half_written_data_set_is_not_opened(data_dir, tmp_path):
  folder = tmp_path / 'tiny_cubes' / 'default' / '1.0.0.incompleteABC'
  shutil.copytree(data_dir, folder)
  with pytest.raises(errors.UserError, match='no data set'):
    built_data.open_data(str(tmp_path))


def test_damaged_metadata_is_one_clear_line(data_dir, tmp_path):
  folder = tmp_path / 'copy'
  shutil.copytree(data_dir, folder)
  (folder / 'features.json').write_text('{')
  with pytest.raises(errors.UserError, match='cannot be opened'):
    built_data.open_data(str(folder))
