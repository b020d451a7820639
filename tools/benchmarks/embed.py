r"""A whole scan to embeddings on the CPU: ours against PyTorch.

  pip install -e '.[benchmark]'
  python tools/benchmark.py embed
  python tools/benchmark.py embed --scan SCAN.nii.gz --precisions float32

The cubes of a scan, overlapping by --stride, go through the full encoder with
random weights, the same on all sides:

- ours: serving/embed.py on an exported encoder, as transvw_tf2.embed does;
  cubes that overlap share the first level (with --stride 64,64,32 none do);
- pytorch: the encoder in PyTorch: channels_last_3d, inference_mode, batch norm
  fused into the convolutions, the scan scaled once, the same batches, with
  torch.compile where that is faster;
- pytorch_tuned: the same with what helps it here beyond that: cubes turned to
  z, x, y, as ours are inside, and an allocator that keeps freed memory.

In float32 and in bfloat16 (ours exported with --precision bfloat16; in PyTorch
weights and activations are). Before, sides must give the same vectors: in
float32 within 1e-5 of the largest number, in bfloat16 at a cosine of 0.999 with
ours in float32; `_difference` is the largest difference to that in % of its
largest number, and `_cosine` is 1 minus the lowest cosine of a cube.

Each side is a process of its own with the same number of threads; they embed
the scan in turn, and the median of --repeats counts. Takes about 10 minutes on
2 cores and 6 GB of memory.
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
import tempfile
import time

from absl import flags
import numpy as np
import side_process

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.serving import embed as embed_lib

_SCAN = flags.DEFINE_string('scan', None, 'Scan; a synthetic one by default.')
_SCAN_SIZE = flags.DEFINE_list(
  'scan_size', ['160', '160', '80'], 'Voxels X,Y,Z of the synthetic scan.'
)
_CUBE = flags.DEFINE_list('size', ['64', '64', '32'], 'Voxels X,Y,Z of a cube.')
_STRIDE = flags.DEFINE_list(
  'stride', ['32', '32', '16'], 'Voxels between cubes along x,y,z.'
)
_FILTERS = flags.DEFINE_integer(
  'base_filters', 32, 'Filters of the first block.', lower_bound=1
)
_BATCH = flags.DEFINE_integer('batch', 8, 'Cubes per call.', lower_bound=1)
_THREADS = flags.DEFINE_integer(
  'threads', None, 'Threads of each side; all cores if not given.'
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 3, 'Times that each side embeds the scan.', lower_bound=1
)
_PRECISIONS = flags.DEFINE_multi_enum(
  *('precisions', ['float32', 'bfloat16'], ['float32', 'bfloat16']),
  'What is computed in.',
)
_COMPILE = flags.DEFINE_boolean(
  'torch_compile', True, 'Try torch.compile as well.'
)

_OURS, _PYTORCH, _TUNED = 'ours', 'pytorch', 'pytorch_tuned'
_AXES = {_PYTORCH: 'xyz', _TUNED: 'zxy'}
# See train_step.py.
_KEEP_MEMORY = {
  'MALLOC_MMAP_THRESHOLD_': str(2**32),
  'MALLOC_TRIM_THRESHOLD_': str(2**33),
  'MALLOC_TOP_PAD_': str(2**29),
}
_MOST_DIFFERENCE = 1e-5
_LEAST_COSINE = 0.999


def embed() -> Iterator[tuple]:
  """Yields the lines of `embed`."""
  with tempfile.TemporaryDirectory() as folder:
    settings = _prepare(folder)
    want = None
    for precision in ('float32', 'bfloat16'):
      if precision not in _PRECISIONS.value and want is not None:
        continue
      with contextlib.ExitStack() as stack:
        sides = {_OURS: _start(stack, _OURS, precision, settings)}
        got = sides[_OURS].embed()
        want = got if want is None else want  # ours in float32
        if precision not in _PRECISIONS.value:
          continue
        name = f'embed_{precision}'
        if got is not want:
          yield from _compare(name, precision, got, want)
        for side, process in _start_pytorch(stack, precision, settings):
          sides[side] = process
          vectors = process.embed()
          yield from _compare(f'{name}_{side}', precision, vectors, want)
        yield from _measure(name, sides, len(want))


def _measure(name, sides, cubes) -> Iterator[tuple]:
  """Yields the lines of the speed of sides in one precision."""
  seconds = collections.defaultdict(list)
  for _ in range(_REPEATS.value):
    for side, process in sides.items():
      seconds[side].append(process.ask('time'))
  speed = {
    side: cubes / statistics.median(values) for side, values in seconds.items()
  }
  for side in sides:
    ratio = (None, None)
    if _PYTORCH in speed and side != _PYTORCH:
      ratio = speed[side] / speed[_PYTORCH], f'{name}_{_PYTORCH}'
    suffix = '' if side == _OURS else f'_{side}'
    yield f'{name}{suffix}', speed[side], 'cubes/s', *ratio


def _compare(name, precision, got, want) -> Iterator[tuple]:
  """Yields how far vectors are from those wanted.

  Raises:
    UserError: too far.
  """
  difference = np.abs(got - want).max() / np.abs(want).max()
  lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
  cosine = ((got * want).sum(axis=1) / lengths).min()
  close = cosine >= _LEAST_COSINE and (
    precision != 'float32' or difference <= _MOST_DIFFERENCE
  )
  if not close:  # NaN too
    raise errors.UserError(
      f'{name} gives other vectors: they differ by {difference:.2g} of the'
      f' largest number, cosine {cosine:.6f}'
    )
  yield f'{name}_difference', 100 * difference, '%', None, None
  yield f'{name}_cosine', 1 - cosine, '1 - cosine', None, None


def _prepare(folder) -> dict:
  """Writes scan, models and weights; returns the settings of all sides."""
  from transvw_tf2.scans import phantom
  from transvw_tf2.scans import reader
  from transvw_tf2.serving import export

  cube = [int(side) for side in _CUBE.value]
  if _SCAN.value:
    hu = reader.read_scan(_SCAN.value, cube_shape=cube).hu
  else:
    size = [int(side) for side in _SCAN_SIZE.value]
    hu = phantom.make_patient(1, 0, size).hu
  settings = {
    'scan': os.path.join(folder, 'scan.npy'),
    'weights': os.path.join(folder, 'weights.npz'),
    'cube': cube,
    'stride': embed_lib.parse_stride(_STRIDE.value),
    'filters': _FILTERS.value,
    'batch': _BATCH.value,
    'threads': _THREADS.value or len(os.sched_getaffinity(0)),
  }
  np.save(settings['scan'], hu)
  network = make_network(_FILTERS.value, cube, settings['weights'])
  for precision in ('float32', 'bfloat16'):
    settings[precision] = os.path.join(folder, precision)
    export.export_encoder(
      network, settings[precision], {}, cube_shape=cube, precision=precision
    )
  return settings


def make_network(filters: int, cube, path: str):
  """Returns a network of random weights and statistics; writes them to `path`.

  Args:
    filters: of the first block.
    cube: voxels of a cube along x, y and z.
    path: .npz, with arrays `layer/number` in the order of Keras.
  """
  import keras

  from transvw_tf2.models import blocks
  from transvw_tf2.models import unet3d

  keras.utils.set_random_seed(1)
  network = unet3d.UNet3D(base_filters=filters)
  network.build((None, *cube, 1))
  rng = np.random.default_rng(1)
  arrays = {}
  for name, layer in blocks.weight_layers(network).items():
    if name.endswith('_bn'):
      layer.gamma.assign(rng.uniform(1.0, 2.0, layer.gamma.shape))
      layer.moving_variance.assign(rng.uniform(0.5, 1.0, layer.gamma.shape))
      for one in (layer.beta, layer.moving_mean):
        one.assign(rng.uniform(-0.1, 0.1, one.shape))
    for number, array in enumerate(layer.get_weights()):
      arrays[f'{name}/{number}'] = array
  np.savez(path, **arrays)
  return network


def _start(stack, side, precision, settings, compiled=False):
  """Starts a side that has embedded a batch, which traces and allocates."""
  process = stack.enter_context(
    _Side(
      side,
      os.path.abspath(__file__),
      {**settings, 'side': side, 'precision': precision, 'compiled': compiled},
      _KEEP_MEMORY if side == _TUNED else None,
    )
  )
  process.ask('batch')
  return process


def _start_pytorch(stack, precision, settings):
  """Returns the names and processes of PyTorch, compiled if that is faster."""
  if importlib.util.find_spec('torch') is None:
    _tell(
      f'no PyTorch: embed_{precision}_pytorch is left out; pip install torch'
    )
    return []
  pytorch, is_compiled = _start(stack, _PYTORCH, precision, settings), False
  if _COMPILE.value:
    name = f'torch.compile in {precision}'
    try:
      compiled = _start(stack, _PYTORCH, precision, settings, True)
      seconds, without = compiled.ask('batch'), pytorch.ask('batch')
    except errors.UserError as error:
      _tell(f'{name}: {error}')
    else:
      _tell(f'{name}: {seconds:.3g} s a batch, {without:.3g} s without')
      is_compiled = seconds < without
      (pytorch if is_compiled else compiled).close()
      pytorch = compiled if is_compiled else pytorch
  tuned = _start(stack, _TUNED, precision, settings, is_compiled)
  return [(_PYTORCH, pytorch), (_TUNED, tuned)]


def _tell(text):
  print(text, file=sys.stderr, flush=True)


class _Side(side_process.SideProcess):
  """A side in this file's `_make_answer`."""

  def embed(self) -> np.ndarray:
    """Returns the vectors of the scan, float (N, embedding size)."""
    return np.array(self.ask('embed'))


def _make_ours(settings):
  """Returns a function that embeds int16 [x, y, z], HU."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
  import tensorflow as tf

  from transvw_tf2.serving import encoders
  from transvw_tf2.serving import signatures

  tf.config.threading.set_intra_op_parallelism_threads(settings['threads'])
  tf.config.threading.set_inter_op_parallelism_threads(settings['threads'])
  encoder = encoders.load(settings[settings['precision']], signatures.CUBES)
  return lambda hu: (
    embed_lib.embed_scan(
      encoder, hu, settings['stride'], settings['batch']
    ).embeddings
  )


def _make_pytorch(settings):
  """Returns a function that embeds int16 [x, y, z], HU."""
  import torch
  import torch_networks  # beside this file, which runs as a script

  torch.set_num_threads(settings['threads'])
  weights = collections.defaultdict(list)
  with np.load(settings['weights']) as arrays:
    for name, array in arrays.items():
      weights[name.partition('/')[0]].append(array)
  order = ['xyz'.index(axis) for axis in _AXES[settings['side']]]
  embedder = torch_networks.Embedder(
    weights,
    base_filters=settings['filters'],
    axes=order,
    bfloat16=settings['precision'] == 'bfloat16',
    compiled=settings['compiled'],
  )

  def embed_scan(hu):
    cube = settings['cube']
    places = embed_lib.cube_places(hu.shape, cube, settings['stride'])
    scaled = torch.as_tensor(hu).float()
    scaled = scaled.clamp_(schema.HU_MIN, schema.HU_MAX)
    scaled = scaled.sub_(schema.HU_MIN).div_(schema.HU_MAX - schema.HU_MIN)
    return embedder.embed_scan(scaled, places, cube, settings['batch']).numpy()

  return embed_scan


def _make_answer(settings):
  """Answers 'embed' with vectors, 'time' and 'batch' with seconds."""
  make = _make_ours if settings['side'] == _OURS else _make_pytorch
  embed_scan = make(settings)
  hu = np.load(settings['scan'])
  # A scan of as many cubes as a batch has.
  sides = list(settings['cube'])
  sides[0] += settings['stride'][0] * (settings['batch'] - 1)
  batch = np.resize(hu, sides)

  def measure(hu):
    start = time.perf_counter()
    embed_scan(hu)
    return time.perf_counter() - start

  commands = {
    'embed': lambda: embed_scan(hu).tolist(),
    'time': lambda: measure(hu),
    'batch': lambda: measure(batch),
  }
  return lambda command: commands[command]()


if __name__ == '__main__':
  _parser = argparse.ArgumentParser()
  _parser.add_argument('settings', type=json.loads)
  _settings = _parser.parse_args().settings
  side_process.serve(lambda: _make_answer(_settings))
