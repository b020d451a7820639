"""Sharing overlap: exact where no zeros are added, and different elsewhere."""

import types

from absl.testing import flagsaver
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import unet3d
from transvw_tf2.serving import embed as embed_lib

_CUBE = (16, 8, 8)


@pytest.fixture(name='module')
def _module(import_main):
  return import_main('tools.benchmark').load('embed_shared')


def _hu(size):
  return np.random.default_rng(0).integers(-999, 999, size).astype(np.int16)


def _pool(cubes):
  """Means of 2x2x2 voxels, z first as inside of networks: nothing is padded."""
  return tf.nn.avg_pool3d(
    tf.transpose(cubes, (0, 3, 1, 2, 4)), 2, 2, 'SAME'
  ), []


class _Encoder:
  depth = 2

  def __call__(self, cubes, training):
    del training
    return _pool(cubes)


def test_windows_are_those_of_the_cubes(module):
  network = types.SimpleNamespace(
    encoder=_Encoder(),
    embed=lambda cubes: tf.reduce_mean(_pool(cubes)[0], axis=(1, 2, 3)),
  )
  hu = _hu((32, 12, 10))
  places = embed_lib.cube_places(hu.shape, _CUBE, (4, 2, 2))
  want = module.embed_cubes(network, hu, places, _CUBE)
  assert np.ptp(want) > 1e-3
  got = module.embed_whole(network, hu, places, _CUBE)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  with pytest.raises(errors.UserError, match='multiples of 2'):
    module.embed_whole(network, hu, places + 1, _CUBE)


def test_a_scan_of_one_cube_is_the_same(module):
  network = unet3d.UNet3D(base_filters=2, depth=2)
  network.build((None, *_CUBE, 1))
  for size, same in ((_CUBE, True), ((32, 16, 8), False)):
    places = embed_lib.cube_places(size, _CUBE, _CUBE)
    want = module.embed_cubes(network, _hu(size), places, _CUBE)
    got = module.embed_whole(network, _hu(size), places, _CUBE)
    assert np.allclose(got, want, rtol=1e-4, atol=1e-6) == same


def test_first_level_of_the_full_encoder(module):
  # Multiplications of convolutions, level by level, from channels and voxels.
  first = 64 * 64 * 32 * 27 * 32
  total = first + 64 * 64 * 32 * 27 * 32 * 64
  for shrink, low, high in ((8, 64, 128), (64, 128, 256), (512, 256, 512)):
    voxels = 64 * 64 * 32 // shrink
    total += voxels * 27 * (low * low + low * high)
  inside = 62 * 62 * 30 * 27 * 32 + 60 * 60 * 28 * 27 * 32 * 64
  got = module.count_first_level((64, 64, 32))
  assert got == pytest.approx(inside / total, rel=1e-6)


@pytest.mark.long
def test_lines(module):
  with flagsaver.flagsaver(
    scan_size=['80', '80', '40'], strides=['16,16,8'], base_filters=1
  ):
    rows = {row[0]: row[1:] for row in module.embed_shared()}
  name = 'embed_shared_16x16x8'
  assert list(rows) == [
    *(name, f'{name}_cosine', f'{name}_neighbour', f'{name}_time'),
    'embed_shared_first_level',
  ]
  assert rows[name][0] > 1  # the borders tell
  assert 0 <= rows[f'{name}_neighbour'][0] <= 100
  assert rows[f'{name}_time'][2] > 0
