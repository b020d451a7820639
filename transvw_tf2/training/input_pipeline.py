"""Reads the examples of a built data set as batches.

An example is a volume, such as a cube or the thumbnail of a scan, and what else
a task reads of it. The data set describes itself, so neither its builder nor
Beam is needed. What comes out is a function of (seed, epoch, step): a resumed
run sees the batches that an uninterrupted one would have seen.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from transvw_tf2 import errors
from transvw_tf2 import schema

_INFO_FILE = 'dataset_info.json'

# What pre-training reads: a cube and the number of its word.
CUBES_AND_WORDS = ('cube', 'word')
# What the autoencoder reads.
THUMBNAILS = ('thumbnail',)
# What writes a data set with these volumes.
_MADE_BY = {
  'cube': '`tfds build transvw_luna16`',
  'thumbnail': '`python -m beam_jobs.index_scans`',
}


@dataclasses.dataclass(frozen=True)
class Data:
  """A built data set.

  Attributes:
    data_dir: folder of the data set's version.
    builder: reads it.
    features: names of what is read; the first is the volume, int16 HU.
    shape: (x, y, z) of a volume in voxels.
    words: names of the visual words where they are read, C = len(words).
    sizes: examples per split.
  """

  data_dir: str
  builder: tfds.core.DatasetBuilder
  features: tuple[str, ...]
  shape: tuple[int, int, int]
  words: tuple[str, ...]
  sizes: dict[str, int]

  @property
  def volume(self) -> str:
    """Name of the volume, which is also that of an example."""
    return self.features[0]

  def size(self, split: str) -> int:
    """Returns the examples of `split`; raises UserError when it has none."""
    if not self.sizes.get(split):
      raise errors.UserError(
        f'data set {self.data_dir} has no {self.volume}s in split {split!r},'
        f' its splits are {self.sizes}: build it with scans for {split}'
      )
    return self.sizes[split]


def find_data_dir(data_dir: str, made_by: str = _MADE_BY['cube']) -> str:
  """Returns the folder of the only data set version at or below `data_dir`.

  Args:
    data_dir: .../transvw_luna16/default/1.0.0 itself, or a folder above it such
      as the --data_dir given to `tfds build`.
    made_by: what builds such data, for messages.

  Raises:
    UserError: no such folder, no data set in it, or more than one.
  """
  if not tf.io.gfile.isdir(data_dir):
    raise errors.UserError(
      f'data set folder {data_dir!r} does not exist: build it with {made_by},'
      ' or give another --data'
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
      f'no data set (no {_INFO_FILE}) at or below {data_dir!r}: build it with'
      f' {made_by}, or give another --data'
    )
  if len(found) > 1:
    raise errors.UserError(
      f'{len(found)} data sets below {data_dir!r}, wanted one: give one of '
      f'{found} as --data'
    )
  return found[0]


def open_data(data_dir: str, features: Sequence[str] = CUBES_AND_WORDS) -> Data:
  """Opens a built data set.

  Args:
    data_dir: see find_data_dir.
    features: see Data; what a task reads.

  Raises:
    UserError: no readable data set with these features is there.
  """
  made_by = _MADE_BY.get(features[0], 'its builder')
  if not data_dir:
    raise errors.UserError(
      f'no data set is given: add --data DIR, the folder that {made_by} wrote'
    )
  data_dir = find_data_dir(str(data_dir), made_by)
  try:
    builder = tfds.builder_from_directory(data_dir)
  except Exception as error:  # tfds raises many kinds for damaged metadata
    raise errors.UserError(
      f'data set {data_dir} cannot be opened ({error}): build it anew'
    ) from error
  found = builder.info.features
  missing = set(features) - set(found)
  if missing:
    raise errors.UserError(
      f'data set {data_dir} has features {sorted(found)}, wanted also '
      f'{sorted(missing)}: give one of {made_by} as --data'
    )
  words = found['word'].names if 'word' in features else ()
  if 'word' in features and not words:
    raise errors.UserError(f'data set {data_dir} names no words: build it anew')
  return Data(
    data_dir=data_dir,
    builder=builder,
    features=tuple(features),
    shape=tuple(found[features[0]].shape),
    words=tuple(words),
    sizes={
      name: split.num_examples for name, split in builder.info.splits.items()
    },
  )


def steps_per_epoch(data: Data, split: str, batch_size: int) -> int:
  """Returns the batches of an epoch: training drops the rest, else padded.

  Raises:
    UserError: the split is empty, or has no full batch to train on.
  """
  size = data.size(split)
  if split != schema.TRAIN:
    return -(-size // batch_size)
  if size < batch_size:
    raise errors.UserError(
      f'data set {data.data_dir} has {size} train {data.volume}s, fewer than a'
      f' batch: lower train.batch_size from {batch_size} to {size} or less'
    )
  return size // batch_size


def make_dataset(
  data: Data | str,
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
  every other split keeps its order and all of its examples, and fills the last
  batch with some of weight 0.

  Args:
    data: an opened data set, or the folder of one of cubes and words.
    split: schema.TRAIN or schema.VALIDATION.
    batch_size: examples per step over all replicas of all workers.
    seed: seed of the run.
    epoch: number of the epoch.
    shuffle_buffer: examples that are shuffled at a time, 256 KiB for a cube and
      2 MiB for a thumbnail; shards are shuffled too, so that it need not hold
      an epoch.
    input_context: in a distributed run, which part of each batch this worker
      wants; batches then are those of one replica, in the order of replicas.

  Returns:
    Dataset of dicts: the volume by its name, float32 (B, x, y, z, 1) in
    [0, 1]; the other features, such as `word`, int32 (B,); `index` int32 (B,),
    place in the epoch; `weight` float32 (B,), 1, or 0 for padding.

  Raises:
    UserError: see steps_per_epoch and open_data.
  """
  if isinstance(data, str):
    data = open_data(data)
  steps = steps_per_epoch(data, split, batch_size)
  dataset = _read(data, split, seed, epoch, shuffle_buffer)
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
    .map(_to_batch(data.volume), tf.data.AUTOTUNE)
    .with_options(_options())
    .prefetch(2)
  )


def read_volumes(data: Data, split: str) -> Iterator[np.ndarray]:
  """Gives the volumes of a split, int16 (x, y, z) HU, always in one order."""
  dataset = data.builder.as_dataset(
    split,
    decoders=tfds.decode.PartialDecoding({data.volume: True}),
    read_config=tfds.ReadConfig(options=_options(), try_autocache=False),
  )
  for example in dataset.as_numpy_iterator():
    yield example[data.volume]


def _options():
  options = tf.data.Options()
  options.deterministic = True
  return options


def _read(data, split, seed, epoch, shuffle_buffer):
  """Returns single examples: volume int16, other features int32, weight."""
  shuffle = split == schema.TRAIN
  # Folded into one number: neighbouring epochs and seeds must not collide.
  order_seed = schema.stable_hash(f'{seed}/{epoch}') >> 1
  dataset = data.builder.as_dataset(
    split,
    shuffle_files=shuffle,
    decoders=tfds.decode.PartialDecoding(dict.fromkeys(data.features, True)),
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

  def to_example(features):
    example = {
      name: tf.cast(features[name], tf.int32) for name in data.features[1:]
    }
    volume = features[data.volume]
    return {**example, data.volume: volume, 'weight': tf.constant(1.0)}

  return dataset.map(to_example, tf.data.AUTOTUNE)


def _padding(data, count):
  example = {name: tf.constant(0) for name in data.features[1:]}
  example[data.volume] = tf.zeros(data.shape, tf.int16)
  example['weight'] = tf.constant(0.0)
  return tf.data.Dataset.from_tensors(example).repeat(count)


def _worker_filter(batch_size, context):
  """Keeps the slice of each global batch that this worker's replicas take."""
  share = batch_size // context.num_input_pipelines
  worker = context.input_pipeline_id

  def is_ours(index, example):
    del example
    return index % batch_size // share == worker

  return is_ours


def _to_batch(volume):
  """Returns what scales the volumes of a batch and keeps the rest."""

  def convert(index, batch):
    scaled = schema.scale_hu(tf.cast(batch[volume], tf.float32))
    return {
      **batch,
      volume: scaled[..., tf.newaxis],
      'index': tf.cast(index, tf.int32),
    }

  return convert
