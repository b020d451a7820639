r"""What it would change if overlapping cubes shared all that they compute.

  python tools/benchmark.py embed_shared
  python tools/benchmark.py embed_shared --workdir WORKDIR

A cube's embedding is the mean of the encoder's last features, computed with
zeros around the cube. One pass of the encoder over a whole scan, then the means
over the windows, computes each voxel once, but with the true neighbours around
each window in place of zeros. Vectors of two synthetic patients both ways:

- embed_shared_32x32x16 and so on, by the stride: largest difference, in % of
  the largest number;
- _cosine: 1 minus the median of the cosines of a cube's two vectors, the mean
  vector taken off before;
- _neighbour: of how many cubes of one patient the most similar cube of the
  other stays the same, %; by cosine, the mean vector taken off;
- _time: CPU seconds of the pass and the means; the ratio is to those of cubes.

`embed_shared_first_level` is the share of the full encoder's operations that go
into voxels of the first level which no zero reaches: these cubes do share, see
models/sliding_windows.
The network is that of --workdir, or a small one with random weights.
"""

from collections.abc import Iterator
import time

from absl import flags
import network_flops
import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.serving import embed as embed_lib

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run whose network embeds.')
_SCAN_SIZE = flags.DEFINE_list(
  'scan_size', ['128', '128', '80'], 'Voxels X,Y,Z of a synthetic scan.'
)
_STRIDES = flags.DEFINE_multi_string(
  'strides', ['32,32,16', '16,16,8'], 'Voxels between cubes along x,y,z.'
)
_FILTERS = flags.DEFINE_integer(
  'base_filters', 4, 'Filters of the first block, without --workdir.'
)
_BATCH = 8
_FULL = {'num_words': 1, 'base_filters': 32, 'head_filters': 1, 'head_units': 1}


def embed_shared() -> Iterator[tuple]:
  """Yields the lines of `embed_shared`."""
  from transvw_tf2.scans import phantom

  network, cube = _make_network()
  size = [int(side) for side in _SCAN_SIZE.value]
  scans = [phantom.make_patient(7, index, size).hu for index in range(2)]
  for text in _STRIDES.value:
    stride = embed_lib.parse_stride(text.split(','))
    places = embed_lib.cube_places(size, cube, stride)
    name = f'embed_shared_{text.replace(",", "x")}'
    yield from _compare(name, network, scans, places, cube)
  yield (
    *('embed_shared_first_level', 100 * count_first_level(cube), '%'),
    *(None, None),
  )


def _make_network():
  """Returns a network with its batch norm folded, and the shape of a cube."""
  import keras

  from transvw_tf2.models import blocks
  from transvw_tf2.models import unet3d
  from transvw_tf2.training import checkpoints

  if _WORKDIR.value:
    network, metadata = checkpoints.load_model(_WORKDIR.value, which='best')
    cube = tuple(metadata['shape'])
  else:
    keras.utils.set_random_seed(1)
    network = unet3d.UNet3D(base_filters=_FILTERS.value)
    cube = schema.CUBE_SHAPE
    network.build((None, *cube, 1))
  blocks.fold(network)
  return network, cube


def _compare(name, network, scans, places, cube) -> Iterator[tuple]:
  """Yields the lines of one stride."""
  alone, alone_time = _embed(embed_cubes, network, scans, places, cube)
  shared, shared_time = _embed(embed_whole, network, scans, places, cube)
  difference = np.abs(shared - alone).max() / np.abs(alone).max()
  yield name, 100 * difference, '%', None, None
  centre = alone.mean(axis=(0, 1))
  alone, shared = alone - centre, shared - centre
  cosines = (_unit(alone) * _unit(shared)).sum(axis=-1)
  yield f'{name}_cosine', 1 - np.median(cosines), '1 - cosine', None, None
  same = 100 * np.mean(_neighbours(alone) == _neighbours(shared))
  yield f'{name}_neighbour', same, '%', None, None
  ratio = shared_time / alone_time
  yield f'{name}_time', shared_time, 's of a core', ratio, 'cubes alone'


def _embed(function, network, scans, places, cube):
  """Returns float32 (scans, N, embedding size), and CPU seconds."""
  function(network, scans[0], places, cube)  # traces
  start = time.process_time()
  vectors = [function(network, hu, places, cube) for hu in scans]
  return np.stack(vectors), time.process_time() - start


def embed_cubes(network, hu, places, cube) -> np.ndarray:
  """Embeds each cube alone, float32 (N, embedding size).

  Args:
    network: of transvw_tf2.models.
    hu: int16 [x, y, z], HU.
    places: int (N, 3), corners of the cubes in voxels.
    cube: voxels of a cube along x, y and z.
  """
  run = _compiled(network, 'embed')
  return np.concatenate(
    [
      run(_scale(cubes)).numpy()
      for cubes in embed_lib.cut_batches(hu, places, cube, _BATCH)
    ]
  )


def embed_whole(network, hu, places, cube) -> np.ndarray:
  """Means of one pass over all of a scan; arguments as of `embed_cubes`.

  Raises:
    UserError: places are not on the grid of the last features.
  """
  step = 2 ** (network.encoder.depth - 1)
  if (places % step).any() or any(side % step for side in hu.shape):
    raise errors.UserError(
      f'strides and sides of the scan are to be multiples of {step}'
    )
  features = _compiled(network, 'encoder')(_scale(hu[np.newaxis])).numpy()[0]
  features = np.moveaxis(features, 0, 2)  # inside of networks z comes first
  rows = []
  for place in places // step:
    x, y, z = (
      slice(at, at + side // step) for at, side in zip(place, cube, strict=True)
    )
    rows.append(features[x, y, z].mean(axis=(0, 1, 2)))
  return np.stack(rows)


def _compiled(network, part):
  import tensorflow as tf

  # Once for a network: tracing takes longer than it does.
  kept = network.__dict__.setdefault('_compiled_parts', {})
  if part not in kept:
    call = {
      'embed': network.embed,
      'encoder': lambda cubes: network.encoder(cubes, training=False)[0],
    }[part]
    kept[part] = tf.function(call, reduce_retracing=True)
  return kept[part]


def _scale(hu):
  import tensorflow as tf

  clipped = np.clip(hu, schema.HU_MIN, schema.HU_MAX).astype(np.float32)
  return tf.constant(schema.scale_hu(clipped)[..., np.newaxis])


def _unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _neighbours(vectors):
  """Returns for each cube of scan 0 the most similar one of scan 1."""
  first, second = _unit(vectors)
  return np.argmax(first @ second.T, axis=1)


def count_first_level(cube) -> float:
  """Returns the share of operations whose results cubes share exactly."""
  first, second = list(network_flops.count_layers(True, size=cube, **_FULL))[:2]
  # A zero reaches one voxel further with each convolution.
  shared = 0.0
  for reach, operations in ((1, first), (2, second)):
    inside = np.prod([side - 2 * reach for side in cube]) / np.prod(cube)
    shared += inside * operations
  return shared / network_flops.count_embedding(size=cube, **_FULL)
