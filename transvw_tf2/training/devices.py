"""Turns `--devices` into a tf.distribute strategy.

`all` is every GPU, or one CPU where there is none; `cpu:2` is two logical CPUs
(two replicas on one machine, to try the distributed path); `gpu:0,1` are GPUs 0
and 1. Where the environment variable TF_CONFIG holds a cluster, the workers
train together and `--devices` says what each of them uses.
"""

import json
import os
import re

import tensorflow as tf

from transvw_tf2 import errors

_WANTED = "wanted 'all', 'cpu', 'cpu:N', 'gpu' or 'gpu:I,J,...'"


def parse_devices(devices: str) -> tuple[str, tuple[int, ...]]:
  """Splits the value of `--devices`.

  Args:
    devices: 'all', 'cpu', 'cpu:N', 'gpu' or 'gpu:I,J,...'.

  Returns:
    The kind 'all', 'cpu' or 'gpu', and its numbers: for cpu the one count, for
    gpu the indices (none: every GPU).

  Raises:
    UserError: any other text, a count of 0 or an index given twice.
  """
  text = devices.strip().lower()
  if text == 'all':
    return 'all', ()
  match = re.fullmatch(r'(cpu|gpu)(?::(\d+(?:,\d+)*))?', text)
  if not match:
    raise errors.UserError(f'--devices is {devices!r}, {_WANTED}')
  kind = match[1]
  numbers = tuple(int(part) for part in (match[2] or '').split(',') if part)
  if kind == 'cpu':
    numbers = numbers or (1,)
    if len(numbers) > 1 or numbers[0] < 1:
      raise errors.UserError(
        f'--devices is {devices!r}, wanted one count of at least 1 after cpu:'
      )
  if len(set(numbers)) < len(numbers):
    raise errors.UserError(f'--devices is {devices!r}, which names a GPU twice')
  return kind, numbers


def make_strategy(devices: str = 'all') -> tf.distribute.Strategy:
  """Returns the strategy for `--devices`; call it before any TensorFlow op.

  Args:
    devices: see parse_devices.

  Returns:
    MirroredStrategy over the devices, or MultiWorkerMirroredStrategy where
    TF_CONFIG holds a cluster.

  Raises:
    UserError: devices that do not exist, or TF_CONFIG that is not JSON.
  """
  kind, numbers = parse_devices(devices)
  cluster = _has_cluster()
  if cluster and kind == 'cpu' and numbers != (1,):
    raise errors.UserError(
      f'--devices is {devices!r} with a cluster in TF_CONFIG, wanted cpu:1, '
      'all or gpu:...: start more workers instead'
    )
  names = _configure(devices, kind, numbers)
  if cluster:
    return tf.distribute.MultiWorkerMirroredStrategy()
  return tf.distribute.MirroredStrategy(names)


def make_deterministic(threads: int) -> None:
  """Makes the same run give the same bits; call it before make_strategy.

  Args:
    threads: of one operation, which decide how it divides its sums: results
      are the same for the same number of threads on the same kind of machine.
  """
  tf.config.experimental.enable_op_determinism()
  tf.config.threading.set_inter_op_parallelism_threads(1)
  tf.config.threading.set_intra_op_parallelism_threads(threads)


class AnyWorker:
  """Whether something is so on any worker; all of them have to ask."""

  def __init__(self, strategy: tf.distribute.Strategy):
    self._strategy = strategy
    self._add_up = tf.function(self._add_up_replicas)

  def __call__(self, flag: bool) -> bool:
    """Returns whether `flag` is set on this worker or another."""
    if not is_cluster(self._strategy):
      return flag
    return float(self._add_up(tf.constant(float(flag)))) > 0

  def _add_up_replicas(self, flag):
    values = self._strategy.run(tf.identity, args=(flag,))
    return self._strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)


def is_cluster(strategy: tf.distribute.Strategy) -> bool:
  """Returns whether there are other workers."""
  return strategy.cluster_resolver is not None and bool(
    strategy.cluster_resolver.cluster_spec().as_dict()
  )


def uses_gpu(strategy: tf.distribute.Strategy) -> bool:
  """Returns whether the replicas of this worker are GPUs."""
  return any('GPU' in name for name in strategy.extended.worker_devices)


def describe(strategy: tf.distribute.Strategy) -> str:
  """Returns the devices of this worker's replicas, such as 'GPU:0, GPU:1'."""
  names = strategy.extended.worker_devices
  return ', '.join(name.rpartition('device:')[2] for name in names)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
  """Returns whether this process is the one that writes the results."""
  resolver = strategy.cluster_resolver
  if resolver is None or resolver.task_type in (None, 'chief'):
    return True
  cluster = resolver.cluster_spec().as_dict()
  return 'chief' not in cluster and resolver.task_id == 0


def check_precision(precision: str, strategy: tf.distribute.Strategy) -> None:
  """Raises UserError where the devices cannot compute in a precision."""
  if precision == 'float16' and not uses_gpu(strategy):
    # TensorFlow has no float16 pooling there.
    raise errors.UserError(
      "train.precision is 'float16', which needs a GPU: take 'bfloat16' on CPU"
    )


def worker_name(strategy: tf.distribute.Strategy) -> str:
  """Returns the name of this worker in its cluster, such as worker-1."""
  resolver = strategy.cluster_resolver
  return f'{resolver.task_type}-{resolver.task_id}'


def check_batch_size(batch_size: int, replicas: int) -> None:
  """Raises UserError unless a global batch splits evenly over the replicas."""
  if batch_size < 1 or batch_size % replicas:
    raise errors.UserError(
      f'train.batch_size is {batch_size}, wanted a multiple of the {replicas} '
      'replicas: change train.batch_size or --devices'
    )


def _has_cluster() -> bool:
  text = os.environ.get('TF_CONFIG', '')
  if not text:
    return False
  try:
    return bool(json.loads(text).get('cluster'))
  except (ValueError, AttributeError) as error:
    raise errors.UserError(
      f'TF_CONFIG is {text!r}, wanted a JSON object with cluster and task: '
      'unset it to train on one machine'
    ) from error


def _configure(devices, kind, numbers):
  """Makes the devices visible and returns their names."""
  gpus = tf.config.list_physical_devices('GPU')
  try:
    if kind == 'gpu' or (kind == 'all' and gpus):
      return _configure_gpus(devices, gpus, numbers or range(len(gpus)))
    return _configure_cpus(numbers[0] if numbers else 1)
  except RuntimeError as error:  # TensorFlow has started already
    raise errors.UserError(
      f'--devices {devices!r} came after the first TensorFlow operation: '
      'make the strategy first'
    ) from error


def _configure_gpus(devices, gpus, wanted):
  if not gpus or max(wanted) >= len(gpus):
    raise errors.UserError(
      f'--devices is {devices!r} but TensorFlow sees {len(gpus)} GPUs: name '
      'others or use --devices cpu'
    )
  tf.config.set_visible_devices([gpus[index] for index in wanted], 'GPU')
  return [f'/gpu:{index}' for index in range(len(wanted))]


def _configure_cpus(count):
  tf.config.set_visible_devices([], 'GPU')
  cpu = tf.config.list_physical_devices('CPU')[0]
  if count > 1:
    tf.config.set_logical_device_configuration(
      cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )
  return [f'/cpu:{index}' for index in range(count)]
