r"""The input of a training step: from shards to float32 batches on the device.

  python tools/benchmark.py input
  python tools/benchmark.py input --cubes 8000 --shards 64 --step_speed 500

Random int16 cubes are written to shards as `tfds build transvw_luna16` writes
them, 256 KiB each. One epoch of them, in batches on the CPU device, is timed:

- input: ours. input_cold: with the shards dropped from the page cache before,
  where the system does as it is told. input_memory: kept in memory, from the
  second epoch on. input_worker: what one of two workers gets of each batch.
- input_plain: tf.data with the same shards, one after the other, the same
  shuffling, and parallel decoding.
- input_arrays: the published procedure without its perturbation: all cubes are
  one float64 array in memory, from which a batch is indexed and copied.

`input_core` and so on is what a second of one core gives, by the CPU time of
the whole process; the ratio says how many GPUs of --gpu_speed that feeds.

`input_wait` is the share of its time in % that a consumer waits for batches
whose step takes as long as at --step_speed cubes/s, and `input_wait_gpu` at
--gpu_speed; the first batch, for which the shuffle buffer is filled, is
`input_start`. By default --step_speed is 20 times what the full network reaches
in float32 on two cores.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import os
import statistics
import sys
import tempfile
import time

from absl import flags
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import record_writer
from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import input_pipeline

_CUBES = flags.DEFINE_integer('cubes', 2000, 'Cubes.', lower_bound=16)
_SHARDS = flags.DEFINE_integer('shards', 16, 'Shards.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'Batch.', lower_bound=2)
_SHUFFLE_BUFFER = flags.DEFINE_integer(
  'shuffle_buffer', 1024, 'Cubes that are shuffled at a time.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Epochs of each side; the median counts.', lower_bound=1
)
_STEP_SPEED = flags.DEFINE_float(
  'step_speed', 8.0, 'Cubes/s of a step that is fed.', lower_bound=0.1
)
_GPU_SPEED = flags.DEFINE_float(
  'gpu_speed', 500.0, 'Cubes/s of a modern GPU.', lower_bound=0.1
)
_SECONDS = flags.DEFINE_float(
  'seconds', 6.0, 'How long a consumer runs.', lower_bound=0.1
)
_WORDS = 44


def input() -> Iterator[tuple]:
  """Yields the lines of `input`."""
  values = collections.defaultdict(list)
  with _made_data() as data, _opened(data.data_dir) as kept:
    sides = _make_sides(data, kept)
    for epoch in range(-1, _REPEATS.value):  # the first to warm up
      for name, make in sides.items():
        if name == 'input_cold':
          _evict(data)
        speed, core_speed = _time_epoch(make(max(epoch, 0)))
        if epoch >= 0:
          values[name].append(speed)
          values[f'{name}/core'].append(core_speed)
      if epoch >= 0:
        for name, speed in (
          ('input_wait', _STEP_SPEED.value),
          ('input_wait_gpu', _GPU_SPEED.value),
        ):
          start, wait = _consume(sides['input'](epoch), speed)
          values[name].append(100 * wait)
          values['input_start'].append(start)
  _tell()
  medians = {name: statistics.median(some) for name, some in values.items()}
  for name in sides:
    ratio = None if name == 'input' else medians[name] / medians['input']
    yield name, medians[name], 'cubes/s', ratio, 'input'
  for name in ('input', 'input_memory', 'input_plain', 'input_arrays'):
    value = medians[f'{name}/core']
    gpu = f'a GPU of {_GPU_SPEED.value:g} cubes/s'
    yield f'{name}_core', value, 'cubes/s a core', value / _GPU_SPEED.value, gpu
  yield 'input_start', medians['input_start'], 's', None, None
  for name in ('input_wait', 'input_wait_gpu'):
    yield name, medians[name], '%', None, None


def _make_sides(
  data: built_data.Data, kept: built_data.Data
) -> dict[str, Callable[[int], Iterable]]:
  """Returns functions that make the batches of an epoch, by name."""

  def make_ours(epoch, data=data, **settings):
    dataset = input_pipeline.make_dataset(
      data,
      schema.TRAIN,
      _BATCH_SIZE.value,
      epoch=epoch,
      shuffle_buffer=_SHUFFLE_BUFFER.value,
      **settings,
    )
    return (batch['cube'] for batch in dataset)

  def make_memory(epoch):
    return make_ours(epoch, kept, cache=input_pipeline.IN_MEMORY)

  def make_worker(epoch):
    context = tf.distribute.InputContext(2, 0, 2)
    return make_ours(epoch, input_context=context)

  arrays = _read_arrays(data)
  return {
    'input': make_ours,
    'input_cold': make_ours,
    'input_memory': make_memory,
    'input_worker': make_worker,
    'input_plain': lambda epoch: _make_plain(data, epoch),
    'input_arrays': lambda epoch: _make_arrays(arrays, epoch),
  }


def _make_plain(data, epoch) -> Iterator[tf.Tensor]:
  """Gives the batches of a plain reader of the same shards."""
  features = {
    'cube': tf.io.FixedLenFeature((), tf.string),
    'word': tf.io.FixedLenFeature((), tf.int64),
  }

  def parse(record):
    example = tf.io.parse_single_example(record, features)
    cube = tf.io.decode_raw(example['cube'], tf.int16)
    cube = tf.cast(tf.reshape(cube, schema.CUBE_SHAPE), tf.float32)
    return schema.scale_hu(cube)[..., tf.newaxis], example['word']

  dataset = (
    tf.data.TFRecordDataset(sorted(data.shards(schema.TRAIN)))
    .shuffle(_SHUFFLE_BUFFER.value, seed=epoch)
    .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(_BATCH_SIZE.value, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )
  return (cubes for cubes, _ in dataset)


def _make_arrays(arrays, epoch) -> Iterator[tf.Tensor]:
  """Gives the batches of the published procedure, but for the perturbation."""
  cubes, words = arrays
  order = np.random.default_rng(epoch).permutation(len(cubes))
  size = _BATCH_SIZE.value
  for first in range(0, len(order) - size + 1, size):
    rows = order[first : first + size]
    batch = tf.convert_to_tensor(cubes[rows].astype(np.float32))
    tf.convert_to_tensor(words[rows])
    yield batch


def _read_arrays(data) -> tuple[np.ndarray, np.ndarray]:
  """Returns all cubes, float64 (N, x, y, z, 1) in [0, 1], and words (N, 1)."""
  count = data.size(schema.TRAIN)
  cubes = np.empty((count, *schema.CUBE_SHAPE, 1))
  for row, cube in enumerate(input_pipeline.read_volumes(data, schema.TRAIN)):
    cubes[row, ..., 0] = schema.scale_hu(cube.astype(np.float64))
  return cubes, np.arange(count, dtype=np.float64)[:, np.newaxis] % _WORDS


def _time_epoch(batches) -> tuple[float, float]:
  """Returns cubes per second, and per second of one core."""
  cubes = 0
  start, start_cpu = time.perf_counter(), time.process_time()
  for batch in batches:
    cubes += batch.shape[0]
  seconds = time.perf_counter() - start
  return cubes / seconds, cubes / (time.process_time() - start_cpu)


def _consume(batches, speed) -> tuple[float, float]:
  """Takes batches as a step would; its device computes, so that it sleeps.

  Returns:
    Seconds until the first batch, and which part of the time after it was
    waited for the others.
  """
  step = _BATCH_SIZE.value / speed
  steps = max(2, round(_SECONDS.value / step))
  start = time.perf_counter()
  next(batches)
  first = time.perf_counter()
  waited = 0.0
  for _ in range(min(steps, _CUBES.value // _BATCH_SIZE.value - 1)):
    time.sleep(step)
    before = time.perf_counter()
    next(batches)
    waited += time.perf_counter() - before
  return first - start, waited / (time.perf_counter() - first)


class _Builder(tfds.dataset_builders.TfDataBuilder, skip_registration=True):
  """Writes shards as the builders of cubes do."""

  def _example_writer(self):
    return record_writer.DeterministicWriter(self.info.file_format)


@contextlib.contextmanager
def _made_data() -> Iterator[built_data.Data]:
  """Writes the cubes into a folder that is removed; opens them."""
  features = builders.make_features()
  features['word'].names = [f'{word:04d}' for word in range(_WORDS)]
  examples = tf.data.Dataset.from_generator(
    _make_examples,
    output_signature={
      name: tf.TensorSpec(feature.shape, feature.dtype)
      for name, feature in features.items()
    },
  )
  with tempfile.TemporaryDirectory() as folder:
    builder = _Builder(
      name='random_cubes',
      config='default',
      version='1.0.0',
      data_dir=folder,
      split_datasets={schema.TRAIN: examples},
      features=features,
      description='Random cubes.',
    )
    tfds.disable_progress_bar()
    # TFDS prints what it does.
    with contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=_SHARDS.value)
      )
    yield built_data.open_data(folder)


def _make_examples() -> Iterator[dict]:
  rng = np.random.default_rng(1)
  for number in range(_CUBES.value):
    cube = rng.integers(
      schema.HU_MIN, schema.HU_MAX + 1, schema.CUBE_SHAPE, np.int16
    )
    yield {
      'cube': cube,
      'word': number % _WORDS,
      'scan_id': f'1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:039d}',
      'resolution': number % 3,
      'origin': [100, 120, 40],
      'size': schema.CUBE_SHAPE,
      'spacing': [0.7, 0.7, 2.5],
      'rank': number % 200,
      'distance': 0.5,
    }


@contextlib.contextmanager
def _opened(data_dir: str) -> Iterator[built_data.Data]:
  """Opens the data anew; forgets what was kept in memory at the end."""
  data = built_data.open_data(data_dir)
  yield data
  data.records.clear()


def _evict(data) -> None:
  """Drops the shards from the page cache."""
  for path in data.shards(schema.TRAIN):
    with open(path, 'rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _tell() -> None:
  print(
    f'median of {_REPEATS.value} epochs of {_CUBES.value} cubes in'
    f' {_SHARDS.value} shards, batch {_BATCH_SIZE.value}, on'
    f' {len(os.sched_getaffinity(0))} cores',
    file=sys.stderr,
  )
