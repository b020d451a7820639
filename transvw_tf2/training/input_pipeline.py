"""Reads the examples of a built data set as batches.

An example is a volume, such as a cube or the thumbnail of a scan, and what else
a task reads of it. What comes out is a function of (seed, epoch, step): a
resumed run sees the batches that an uninterrupted one would have seen.

Several shards are read at once. All that only moves records about, shuffling,
skipping and leaving out what other workers take, comes before a record is
decoded.
"""

from collections.abc import Callable
from collections.abc import Iterator

from absl import logging
import numpy as np
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import damaged_data

# A value of `cache`.
IN_MEMORY = 'memory'
INTERLEAVE = 16


def steps_per_epoch(data: built_data.Data, split: str, batch_size: int) -> int:
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
  data: built_data.Data | str,
  split: str,
  batch_size: int,
  *,
  seed: int = 0,
  epoch: int = 0,
  shuffle_buffer: int = 1024,
  interleave: int = INTERLEAVE,
  skip_steps: int = 0,
  cache: str | None = None,
  in_order: bool = False,
  map_batch: Callable | None = None,
  input_context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
  """Returns the batches of one epoch.

  `train` is shuffled by (seed, epoch) and drops the last incomplete batch;
  every other split keeps its order and all of its examples, and fills the last
  batch with some of weight 0. TensorFlow mixes its global seed into an order: a
  run sets that to its own seed too.

  Args:
    data: an opened data set, or the folder of one of cubes and words.
    split: schema.TRAIN, schema.VALIDATION or schema.TEST.
    batch_size: examples per step over all replicas of all workers.
    seed: seed of the run.
    epoch: number of the epoch.
    shuffle_buffer: examples that are shuffled at a time, 256 KiB for a cube and
      2 MiB for a thumbnail; shards are shuffled too, so that it need not hold
      an epoch.
    interleave: shards that are read at once, one example of each in turn.
    skip_steps: steps of the epoch, over all workers, to leave out at its
      beginning; their examples are read, but not decoded.
    cache: IN_MEMORY keeps the split, as it is on disk, in `data`, so that later
      epochs read no files: 256 KiB for a cube on each worker, read before the
      first batch. The order does not depend on it.
    in_order: gives all of `train` in its order too, as of the other splits.
    map_batch: applied to each batch, several at a time.
    input_context: in a distributed run, which part of each batch this worker
      wants; batches then are those of one replica, in the order of replicas.

  Returns:
    Dataset of dicts: the volume by its name, float32 (B, x, y, z, 1) in
    [0, 1]; the other features, such as `word`, int32 (B,), or float32
    (B, x, y, z, 1) as `mask`, or string (B,), or as in the data set, such as
    `place`, float64 (B, 3); `index` int32 (B,), place in the epoch; `weight`
    float32 (B,), 1, or 0 for padding. Or what `map_batch` makes of one.

  Raises:
    UserError: see steps_per_epoch and built_data.open_data. What reading raises
      is an error of TensorFlow: see damaged_data.explain.
  """
  if isinstance(data, str):
    data = built_data.open_data(data)
  shuffled = split == schema.TRAIN and not in_order
  steps = -(-data.size(split) // batch_size)
  if shuffled:
    steps = steps_per_epoch(data, split, batch_size)
  check_settings(interleave, cache)
  if cache:
    _keep_in_memory(data, split, interleave)
  # Folded into one number: neighbouring epochs and seeds must not collide.
  order_seed = schema.stable_hash(f'{seed}/{epoch}') >> 1
  if shuffled:
    dataset = _order(data, split, interleave, order_seed, shuffle_buffer)
  else:
    # The last batch is filled from the beginning.
    dataset = _order(data, split, interleave).repeat()
  dataset = dataset.enumerate().take(steps * batch_size)
  dataset = dataset.skip(skip_steps * batch_size)
  if input_context:
    # The batch of all workers consists of one part after the other.
    workers = input_context.num_input_pipelines
    parts = dataset.batch(batch_size // workers, drop_remainder=True)
    dataset = parts.shard(workers, input_context.input_pipeline_id).unbatch()
    batch_size //= input_context.num_replicas_in_sync
  dataset = dataset.map(_to_example(data, split), tf.data.AUTOTUNE).batch(
    batch_size, drop_remainder=True
  )
  if map_batch:
    dataset = dataset.map(map_batch, tf.data.AUTOTUNE)
  return dataset.with_options(_options()).prefetch(2)


def read_volumes(data: built_data.Data, split: str) -> Iterator[np.ndarray]:
  """Gives the volumes of a split, int16 (x, y, z) HU, always in one order.

  Raises:
    UserError: a shard is damaged.
  """
  dataset = _order(data, split, INTERLEAVE)
  dataset = dataset.map(_decoder(data, split), tf.data.AUTOTUNE)
  with damaged_data.explain(data, split):
    for example in dataset.with_options(_options()).as_numpy_iterator():
      yield example[data.volume]


def check_settings(interleave: int, cache: str | None) -> None:
  """Raises UserError for what `make_dataset` does not take."""
  if interleave < 1:
    raise errors.UserError(
      f'train.interleave is {interleave}, wanted at least 1'
    )
  if cache not in (None, IN_MEMORY):
    raise errors.UserError(
      f'train.cache is {cache!r}, wanted None or {IN_MEMORY!r}'
    )


def _options():
  options = tf.data.Options()
  options.deterministic = True
  return options


def _keep_in_memory(data, split, interleave):
  """Puts all records of a split into `data`."""
  if split not in data.records:
    logging.info('reading %s of %s into memory', split, data.data_dir)
    data.records[split] = read_records(data, split, interleave)


def read_records(
  data: built_data.Data, split: str, interleave: int = INTERLEAVE
) -> tf.Tensor:
  """Returns the records of a split in the order of the shards, string (N,).

  Raises:
    UserError: a shard is damaged.
  """
  shards = data.shards(split)
  records = tf.data.Dataset.from_tensor_slices(list(shards)).interleave(
    tf.data.TFRecordDataset,
    cycle_length=interleave,
    block_length=max(shards.values()),  # a shard in full, before the next
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  size = data.size(split)
  with damaged_data.explain(data, split):
    records = records.apply(tf.data.experimental.assert_cardinality(size))
    # Moved, not copied: at no time is there more than one copy in memory.
    return records.batch(size).get_single_element()


def _order(data, split, interleave, seed=None, shuffle_buffer=1):
  """Returns what an epoch reads, one after the other; shuffled with a seed.

  Returns:
    Dataset of string () records, or of int64 () places in data.records[split].
  """
  if split in data.selected:
    return _order_selected(data, split, seed)
  shards = data.shards(split)
  sizes = np.array(list(shards.values()), np.int64)
  ends = np.cumsum(sizes)
  dataset = tf.data.Dataset.from_tensor_slices(
    (list(shards), ends - sizes, ends)
  )
  if seed is not None:
    dataset = dataset.shuffle(
      len(shards), seed=seed, reshuffle_each_iteration=False
    )
  in_memory = split in data.records

  def read(path, start, stop):
    if in_memory:
      return tf.data.Dataset.range(start, stop)
    return tf.data.TFRecordDataset(path)

  dataset = dataset.interleave(
    read,
    cycle_length=interleave,
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  # A shard that ends early must not end the epoch.
  dataset = dataset.apply(
    tf.data.experimental.assert_cardinality(data.size(split))
  )
  if seed is not None and shuffle_buffer > 1:
    dataset = dataset.shuffle(
      shuffle_buffer, seed=seed, reshuffle_each_iteration=False
    )
  return dataset


def _order_selected(data, split, seed):
  """Returns the places of an epoch in which the selected examples recur."""
  size = data.size(split)
  places = tf.data.Dataset.range(size)
  if seed is not None:
    places = places.shuffle(size, seed=seed, reshuffle_each_iteration=False)
  return places.map(lambda place: place % data.selected[split])


def _decoder(data, split):
  """Returns what decodes an element of `_order`."""
  decode = data.make_decoder()
  records = data.records.get(split)
  if records is None:
    return decode
  return lambda place: decode(records[place])


def _to_example(data, split):
  """Returns what makes an example of a number and an element of `_order`."""
  decode = _decoder(data, split)
  size = data.size(split)

  def convert(index, element):
    example = decode(element)
    volume = tf.cast(example[data.volume], tf.float32)[..., tf.newaxis]
    return {
      data.volume: schema.scale_hu(volume),
      **{name: _convert(example[name]) for name in data.features[1:]},
      'index': tf.cast(index, tf.int32),
      'weight': tf.cast(index < size, tf.float32),
    }

  return convert


def _convert(value):
  """Returns a feature beside the volume in the type that tasks expect."""
  if value.dtype == tf.string:
    return value
  if value.shape.rank == 3:
    return tf.cast(value, tf.float32)[..., tf.newaxis]
  # World mm would lose what tells neighbouring candidates apart.
  if value.dtype.is_floating:
    return value
  return tf.cast(value, tf.int32)
