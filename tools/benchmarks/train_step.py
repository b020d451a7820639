r"""One training step of the Y-Net on the CPU: ours against PyTorch.

  python tools/benchmark.py train_step
  python tools/benchmark.py train_step --batch 8 --precisions bfloat16

A step is forward, loss (MSE + 0.01 * cross-entropy), backward and Adam, on
random cubes that are in memory; no side perturbs them. The sides are

- ours: fused upsampling, oneDNN, the network not compiled by XLA, as training
  does on a CPU;
- plain: the same with fused_upsampling=False;
- eigen, with --without_onednn: ours with TensorFlow's own convolutions, which
  it takes on CPUs without AVX512 unless asked;
- pytorch: the same network in PyTorch, channels_last_3d, Adam fused, with
  torch.compile where that is faster;
- pytorch_tuned: the same with what helps it here beyond that: cubes turned to
  z, x, y, as ours are inside, and an allocator that keeps freed memory.

In float32 and in bfloat16 (Keras' mixed_bfloat16, PyTorch's autocast). Each
side is a process of its own with the same number of threads. They step in turn,
so memory is that of a process at its peak, libraries included.

Floating point operations are those of convolutions and dense layers; the share
is that of the speed of a large matrix product in the same precision. Takes 7 to
12 minutes on 2 cores and 15 GB of memory.
"""

import argparse
import collections
from collections.abc import Iterator
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import time

from absl import flags
import network_flags
import network_flops
import side_process

from transvw_tf2 import errors

_BATCH = flags.DEFINE_integer('batch', 4, 'Cubes per step.', lower_bound=1)
_NETWORK = network_flags.NetworkFlags()
_THREADS = flags.DEFINE_integer(
  'threads', None, 'Threads of each side; all cores if not given.'
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Steps of each side; the median counts.', lower_bound=1
)
_PRECISIONS = flags.DEFINE_multi_enum(
  *('precisions', ['float32', 'bfloat16'], ['float32', 'bfloat16']),
  'What is computed in.',
)
_COMPILE = flags.DEFINE_boolean(
  'torch_compile', True, 'Try torch.compile as well.'
)

_WITHOUT_ONEDNN = flags.DEFINE_boolean(
  'without_onednn', False, 'Measure ours without oneDNN as well.'
)

_OURS, _PLAIN, _EIGEN = 'ours', 'plain', 'eigen'
_PYTORCH, _TUNED = 'pytorch', 'pytorch_tuned'
_AXES = {_PYTORCH: 'xyz', _TUNED: 'zxy'}
# glibc gives arrays back to the system when they are freed: a fifth of the time
# of a step of PyTorch in bfloat16 goes into getting them again.
_KEEP_MEMORY = {
  'MALLOC_MMAP_THRESHOLD_': str(2**32),
  'MALLOC_TRIM_THRESHOLD_': str(2**33),
  'MALLOC_TOP_PAD_': str(2**29),
}
_ENVIRONMENTS = {
  _TUNED: _KEEP_MEMORY,
  _EIGEN: {'TF_ENABLE_ONEDNN_OPTS': '0'},
}
_MATMUL_SIZES = (1024, 2048, 4096)


def train_step() -> Iterator[tuple]:
  """Yields the lines of `train_step`."""
  for side, fused in ((_OURS, True), (_PLAIN, False)):
    name = f'train_step_flops{_suffix(side)}'
    yield name, _step_flops(fused) / 1e9, 'GFLOP/cube', None, None
  for precision in _PRECISIONS.value:
    yield from _measure(precision)


def _measure(precision) -> Iterator[tuple]:
  """Yields the lines of one precision."""
  with contextlib.ExitStack() as stack:
    pytorch = {}
    if importlib.util.find_spec('torch') is None:
      _tell(
        f'no PyTorch: train_step_{precision}_pytorch is left out; pip install'
        ' torch'
      )
    else:
      # First, while there is memory for one more.
      pytorch = _start_pytorch(stack, precision)
    ours = (_OURS, _PLAIN, *[_EIGEN] * _WITHOUT_ONEDNN.value)
    sides = {
      side: _start(stack, side, precision=precision, fused=side != _PLAIN)
      for side in ours
    } | pytorch
    times = collections.defaultdict(list)
    for _ in range(_REPEATS.value):
      for side, process in sides.items():
        times[side].append(process.run('step'))
    memory = {side: process.run('memory') for side, process in sides.items()}
    matmul = sides[_OURS].run('matmul')
  yield f'matmul_{precision}', matmul / 1e9, 'GFLOP/s', None, None
  speed = {
    side: _BATCH.value / statistics.median(values)
    for side, values in times.items()
  }
  for side in sides:
    name = f'train_step_{precision}{_suffix(side)}'
    share = speed[side] * _step_flops(side != _PLAIN) / matmul
    yield name, speed[side], 'cubes/s', *_ratio(speed, side)
    yield f'{name}_share', 100 * share, '% of matmul', None, None
    yield (
      f'{name}_memory',
      memory[side] / 1e9,
      'GB',
      *_ratio(memory, side),
    )


def _suffix(side) -> str:
  return '' if side == _OURS else f'_{side}'


def _ratio(values, side):
  for other in (_PYTORCH, _EIGEN):
    if other in values:
      return values[side] / values[other], other
  return None, None


def _start(stack, side, **settings):
  """Starts a side, with its first step done: that traces and allocates."""
  process = stack.enter_context(_Side(side, **settings))
  process.run('step')
  return process


def _start_pytorch(stack, precision):
  """Starts the sides of PyTorch, compiled if that is faster."""

  def start(side, compiled):
    settings = {'axes': _AXES[side], 'compiled': compiled}
    return _start(stack, side, precision=precision, **settings)

  pytorch, is_compiled = start(_PYTORCH, False), False
  if _COMPILE.value:
    name = f'torch.compile in {precision}'
    try:
      compiled = start(_PYTORCH, True)
      seconds, without = compiled.run('step'), pytorch.run('step')
    except errors.UserError as error:
      _tell(f'{name}: {error}')
    else:
      _tell(f'{name}: {seconds:.3g} s a step, {without:.3g} s without')
      is_compiled = seconds < without
      (pytorch if is_compiled else compiled).close()  # and its memory is free
      pytorch = compiled if is_compiled else pytorch
  return {_PYTORCH: pytorch, _TUNED: start(_TUNED, is_compiled)}


def _tell(text):
  print(text, file=sys.stderr, flush=True)


class _Side(side_process.SideProcess):
  """A side in this file's `_make_answer`."""

  def __init__(self, side, **settings):
    settings |= {
      'side': side,
      'batch': _BATCH.value,
      'size': _NETWORK.size,
      'network': _NETWORK.network,
      'threads': _THREADS.value or len(os.sched_getaffinity(0)),
    }
    super().__init__(
      side,
      os.path.abspath(__file__),
      settings,
      _ENVIRONMENTS.get(side),
    )

  def run(self, command: str) -> float:
    """Returns seconds of a 'step', FLOP/s of 'matmul' or bytes of 'memory'."""
    return self.ask(command)


def _step_flops(fused: bool) -> float:
  return network_flops.count_step(fused, size=_NETWORK.size, **_NETWORK.network)


def make_ours(settings):
  """Builds the network and a step of ours.

  Args:
    settings: dict with batch, size, network (a dict of num_words,
      base_filters, head_filters and head_units), precision and fused.

  Returns:
    The model, and a function of float32 (B, X, Y, Z, 1) inputs and cubes and
    int32 (B,) words that updates it and returns the loss.
  """
  import keras
  import tensorflow as tf

  from transvw_tf2.models import visual_word_net

  mixed = settings['precision'] == 'bfloat16'
  model = visual_word_net.VisualWordNet(
    **settings['network'],
    fused_upsampling=settings['fused'],
    dtype='mixed_bfloat16' if mixed else 'float32',
  )
  model.build((settings['batch'], *settings['size'], 1))
  variables = model.trainable_variables
  optimizer = keras.optimizers.Adam(1e-3)
  optimizer.build(variables)

  @tf.function
  def step(inputs, cubes, words):
    with tf.GradientTape() as tape:
      outputs = model(inputs, training=True)
      cross_entropy = keras.losses.sparse_categorical_crossentropy(
        words, outputs['words']
      )
      loss = tf.reduce_mean(tf.square(outputs['restored'] - cubes)) + (
        0.01 * tf.reduce_mean(cross_entropy)
      )
    gradients = tape.gradient(loss, [one.value for one in variables])
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return loss

  return model, step


def _serve_ours(settings):
  """Returns a function that does a step on a batch of its own."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(settings['threads'])
  tf.config.threading.set_inter_op_parallelism_threads(settings['threads'])
  _, step = make_ours(settings)
  shape = (settings['batch'], *settings['size'], 1)
  inputs, cubes = (tf.random.uniform(shape) for _ in range(2))
  words = tf.random.uniform(
    shape[:1], maxval=settings['network']['num_words'], dtype=tf.int32
  )
  return lambda: step(inputs, cubes, words).numpy()


def _serve_pytorch(settings):
  """Returns a function that does a step on a batch of its own."""
  import torch
  import torch_networks  # beside this file, which runs as a script

  torch.set_num_threads(settings['threads'])
  step = torch_networks.TrainStep(
    torch_networks.VisualWordNet(**settings['network']),
    bfloat16=settings['precision'] == 'bfloat16',
    compiled=settings['compiled'],
  )
  batch = torch_networks.draw_batch(
    settings['batch'],
    [settings['size']['xyz'.index(axis)] for axis in settings['axes']],
    settings['network']['num_words'],
  )
  return lambda: step(*batch).item()


def _measure_matmul(settings) -> float:
  """Returns the FLOP/s of the fastest of some large matrix products."""
  import tensorflow as tf

  speeds = []
  for size in _MATMUL_SIZES:
    first, second = (
      tf.cast(tf.random.normal((size, size)), settings['precision'])
      for _ in range(2)
    )
    for _ in range(5):
      start = time.perf_counter()
      tf.linalg.matmul(first, second).numpy()
      speeds.append(2 * size**3 / (time.perf_counter() - start))
  return max(speeds)


def _peak_memory() -> float:
  """Returns bytes of resident memory of this process at its peak."""
  # What getrusage tells starts at the memory of the parent.
  with open('/proc/self/status', encoding='ascii') as file:
    (kibibytes,) = (
      line.split()[1] for line in file if line.startswith('VmHWM:')
    )
  return 1024.0 * int(kibibytes)


def _make_answer(settings):
  """Returns what a command of `_Side.run` asks for."""
  serve = _serve_pytorch if settings['side'] in _AXES else _serve_ours
  step = serve(settings)

  def time_step():
    start = time.perf_counter()
    step()
    return time.perf_counter() - start

  commands = {
    'step': time_step,
    'matmul': lambda: _measure_matmul(settings),
    'memory': _peak_memory,
  }
  return lambda command: commands[command]()


if __name__ == '__main__':
  _parser = argparse.ArgumentParser()
  _parser.add_argument('settings', type=json.loads)
  _settings = _parser.parse_args().settings
  side_process.serve(lambda: _make_answer(_settings))
