"""Reads the cubes of a built data set as batches.

The data set describes itself, so neither its builder nor Beam is needed. What
comes out is a function of (seed, epoch, step): a resumed run sees the batches
that an uninterrupted one would have seen.
"""

import dataclasses
import os

import tensorflow as tf
import tensorflow_datasets as tfds

from transvw_tf2 import errors
from transvw_tf2 import schema

_INFO_FILE = 'dataset_info.json'


@dataclasses.dataclass(frozen=True)
class CubeData:
  """A built data set.

  Attributes:
    data_dir: folder of the data set's version.
    builder: reads it.
    cube_shape: (x, y, z) of a cube in voxels.
    words: names of the visual words; C = len(words).
    sizes: cubes per split.
  """

  data_dir: str
  builder: tfds.core.DatasetBuilder
  cube_shape: tuple[int, int, int]
  words: tuple[str, ...]
  sizes: dict[str, int]

  def size(self, split: str) -> int:
    """Returns the cubes of `split`; raises UserError when there are none."""
    if not self.sizes.get(split):
      raise errors.UserError(
        f'data set {self.data_dir} has no cubes in split {split!r}, its splits '
        f'are {self.sizes}: build it with scans for {split}'
      )
    return self.sizes[split]


def find_data_dir(data_dir: str) -> str:
  """Returns the folder of the only data set version at or below `data_dir`.

  Args:
    data_dir: .../transvw_luna16/default/1.0.0 itself, or a folder above it such
      as the --data_dir given to `tfds build`.

  Raises:
    UserError: no such folder, no data set in it, or more than one.
  """
  if not tf.io.gfile.isdir(data_dir):
    raise errors.UserError(
      f'data set folder {data_dir!r} does not exist: build it with `tfds build '
      'transvw_luna16`, or give another --data'
    )
  if tf.io.gfile.exists(os.path.join(data_dir, _INFO_FILE)):
    return data_dir
  found = []
  # data_dir/name/config/version; a data set without config has one level less.
  for depth in range(1, 4):
    pattern = os.path.join(data_dir, *['*'] * depth, _INFO_FILE)
    found += [os.path.dirname(path) for path in tf.io.gfile.glob(pattern)]
  found = sorted(path for path in found if 'incomplete' not in path)
  if not found:
    raise errors.UserError(
      f'no data set (no {_INFO_FILE}) at or below {data_dir!r}: build it with '
      '`tfds build transvw_luna16`, or give another --data'
    )
  if len(found) > 1:
    raise errors.UserError(
      f'{len(found)} data sets below {data_dir!r}, wanted one: give one of '
      f'{found} as --data'
    )
  return found[0]


def open_data(data_dir: str) -> CubeData:
  """Opens a built data set.

  Args:
    data_dir: see find_data_dir.

  Raises:
    UserError: no readable data set of cubes and words is there.
  """
  if not data_dir:
    raise errors.UserError(
      'no data set is given: add --data DIR, the folder that `tfds build '
      '--data_dir` wrote'
    )
  data_dir = find_data_dir(str(data_dir))
  try:
    builder = tfds.builder_from_directory(data_dir)
  except Exception as error:  # tfds raises many kinds for damaged metadata
    raise errors.UserError(
      f'data set {data_dir} cannot be opened ({error}): build it anew'
    ) from error
  features = builder.info.features
  missing = {'cube', 'word'} - set(features)
  if missing:
    raise errors.UserError(
      f'data set {data_dir} has features {sorted(features)}, wanted also '
      f'{sorted(missing)}: give a data set of transvw_luna16 as --data'
    )
  names = features['word'].names
  if not names:
    raise errors.UserError(f'data set {data_dir} names no words: build it anew')
  return CubeData(
    data_dir=data_dir,
    builder=builder,
    cube_shape=tuple(features['cube'].shape),
    words=tuple(names),
    sizes={
      name: split.num_examples for name, split in builder.info.splits.items()
    },
  )


def steps_per_epoch(data: CubeData, split: str, batch_size: int) -> int:
  """Returns the batches of an epoch: training drops the rest, else padded.

  Raises:
    UserError: the split is empty, or has no full batch to train on.
  """
  size = data.size(split)
  if split != schema.TRAIN:
    return -(-size // batch_size)
  if size < batch_size:
    raise errors.UserError(
      f'data set {data.data_dir} has {size} train cubes, fewer than a batch: '
      f'lower train.batch_size from {batch_size} to {size} or less'
    )
  return size // batch_size


def make_dataset(
  data: CubeData | str,
  split: str,
  batch_size: int,
  *,
  seed: int = 0,
  epoch: int = 0,
  shuffle_buffer: int = 1024,
  input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
  """Returns the batches of one epoch.

  `train` is shuffled by (seed, epoch) and drops the last incomplete batch;
  every other split keeps its order and all of its cubes, and fills the last
  batch with cubes of weight 0.

  Args:
    data: an opened data set, or its folder.
    split: schema.TRAIN or schema.VALIDATION.
    batch_size: cubes per step over all replicas of all workers.
    seed: seed of the run.
    epoch: number of the epoch.
    shuffle_buffer: cubes that are shuffled at a time, 256 KiB each; shards are
      shuffled too, so that it need not hold an epoch.
    input_context: in a distributed run, which part of each batch this worker
      wants; batches then are those of one replica, in the order of replicas.

  Returns:
    Dataset of dicts: `cube` float32 (B, x, y, z, 1) in [0, 1]; `word` int32
    (B,); `index` int32 (B,), place in the epoch; `weight` float32 (B,), 1, or 0
    for padding.

  Raises:
    UserError: see steps_per_epoch and open_data.
  """
  if isinstance(data, str):
    data = open_data(data)
  steps = steps_per_epoch(data, split, batch_size)
  dataset = _read(data, split, seed, epoch, shuffle_buffer)
  dataset = dataset.map(_with_weight, tf.data.AUTOTUNE)
  if split != schema.TRAIN:
    dataset = dataset.concatenate(
      _padding(data, steps * batch_size - data.size(split))
    )
  dataset = dataset.enumerate().take(steps * batch_size)
  if input_context:
    dataset = dataset.filter(_worker_filter(batch_size, input_context))
    batch_size //= input_context.num_replicas_in_sync
  return (
    dataset.batch(batch_size, drop_remainder=True)
    .map(_to_floats, tf.data.AUTOTUNE)
    .with_options(_options())
    .prefetch(2)
  )


def _options():
  options = tf.data.Options()
  options.deterministic = True
  return options


def _read(data, split, seed, epoch, shuffle_buffer):
  """Returns single examples, int16 cube and int64 word."""
  shuffle = split == schema.TRAIN
  # Folded into one number: neighbouring epochs and seeds must not collide.
  order_seed = schema.stable_hash(f'{seed}/{epoch}') >> 1
  dataset = data.builder.as_dataset(
    split,
    shuffle_files=shuffle,
    decoders=tfds.decode.PartialDecoding({'cube': True, 'word': True}),
    read_config=tfds.ReadConfig(
      options=_options(),
      # An epoch is read once per dataset object: a cache would only cost.
      try_autocache=False,
      shuffle_seed=order_seed,
      skip_prefetch=True,
    ),
  )
  if shuffle and shuffle_buffer > 1:
    dataset = dataset.shuffle(shuffle_buffer, seed=order_seed)
  return dataset


def _with_weight(example):
  return {
    'cube': example['cube'],
    'word': tf.cast(example['word'], tf.int32),
    'weight': tf.constant(1.0),
  }


def _padding(data, count):
  example = {
    'cube': tf.zeros(data.cube_shape, tf.int16),
    'word': tf.constant(0),
    'weight': tf.constant(0.0),
  }
  return tf.data.Dataset.from_tensors(example).repeat(count)


def _worker_filter(batch_size, context):
  """Keeps the slice of each global batch that this worker's replicas take."""
  share = batch_size // context.num_input_pipelines
  worker = context.input_pipeline_id

  def is_ours(index, example):
    del example
    return index % batch_size // share == worker

  return is_ours


def _to_floats(index, batch):
  cubes = schema.scale_hu(tf.cast(batch['cube'], tf.float32))
  return {
    'cube': cubes[..., tf.newaxis],
    'word': batch['word'],
    'index': tf.cast(index, tf.int32),
    'weight': batch['weight'],
  }
