"""Cubes that share their first level, against each cube alone."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2.models import blocks
from transvw_tf2.models import sliding_windows
from transvw_tf2.models import unet3d


def _make_network(depth, dtype=None):
  keras.utils.set_random_seed(3)
  network = unet3d.UNet3D(base_filters=2, depth=depth, dtype=dtype)
  network.build((None, 16, 16, 16, 1))
  rng = np.random.default_rng(0)
  for name, layer in blocks.weight_layers(network).items():
    if name.endswith('_bn'):
      # Biases too: what lies outside of a cube is 0 only before them.
      layer.beta.assign(rng.uniform(0.1, 0.5, layer.beta.shape))
      layer.moving_mean.assign(rng.uniform(-0.5, 0.5, layer.beta.shape))
  return network


def _draw(size):
  return np.random.default_rng(1).random(size).astype(np.float32)


def _embed_alone(network, volume, corners, cube, grid=(1, 1, 1)):
  cubes = [
    volume[x : x + cube[0], y : y + cube[1], z : z + cube[2]]
    for x, y, z in itertools.product(*corners)
  ]
  return network.embed(np.stack(cubes)[..., np.newaxis], grid).numpy()


def _embed_together(network, volume, corners, cube, grid=(1, 1, 1)):
  run = tf.function(
    lambda volume, *corners: sliding_windows.embed_windows(
      network.encoder, volume, corners, cube, grid
    )
  )
  arrays = [tf.constant(starts, tf.int32) for starts in corners]
  return run(tf.constant(volume), *arrays).numpy()


@pytest.mark.parametrize(
  ('depth', 'cube', 'corners'),
  [
    (2, (8, 6, 4), ([0, 2, 8], [0, 4], [0, 2, 4, 6])),
    (2, (4, 4, 4), ([0, 4], [0, 2], [2, 4])),
    (3, (12, 8, 8), ([1, 3, 11], [3, 7], [0, 8, 16])),  # inside, and odd
    (3, (8, 12, 16), ([0], [0, 6], [0])),
    (3, (8, 8, 8), ([2], [4], [6])),
    (2, (8, 8, 32), ([0, 2], [0], [0, 4, 30])),  # more rows than at once
    (2, (4, 4, 4), ([0, 8], [0], [0, 10])),  # apart
  ],
)
def test_equals_cubes_alone(depth, cube, corners):
  network = _make_network(depth)
  last = [starts[-1] for starts in corners]
  size = np.add(last, cube) + 3
  volume = _draw(size)
  want = _embed_alone(network, volume, corners, cube)
  assert np.ptp(want, axis=0).max() > 1e-4 or len(want) == 1
  got = _embed_together(network, volume, corners, cube)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_parts_of_cubes():
  network = _make_network(3)
  corners, cube = ([0, 4], [0], [0, 2]), (16, 8, 16)
  volume = _draw((20, 8, 18))
  want = _embed_alone(network, volume, corners, cube, (2, 1, 4))
  got = _embed_together(network, volume, corners, cube, (2, 1, 4))
  assert got.shape == (4, 8 * 16)
  np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_bfloat16_is_as_near_as_alone():
  network = _make_network(2, 'mixed_bfloat16')
  corners, cube = ([0, 4], [0, 2], [0, 2]), (8, 8, 8)
  volume = _draw((12, 10, 10))
  want = _embed_alone(network, volume, corners, cube)
  got = _embed_together(network, volume, corners, cube)
  assert got.dtype == np.float32
  # Eight bits; the same but for the order of sums.
  np.testing.assert_allclose(got, want, atol=0.01 * np.abs(want).max())


def test_refuses_cubes_that_do_not_fit_the_network():
  with pytest.raises(ValueError, match='multiples of 4'):
    _embed_together(_make_network(3), _draw((8, 8, 8)), [[0]] * 3, (8, 8, 6))


@pytest.mark.parametrize(
  ('starts', 'match'),
  [
    ([0, 3], 'all odd or all even'),
    ([4, 2], 'ascending'),
    ([2, 2], 'ascending'),
    ([-2, 0], 'inside of'),
    ([0, 6], 'inside of'),
  ],
)
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_refuses_corners_that_would_give_other_vectors(starts, match, axis):
  corners = [[0], [0], [0]]
  corners[axis] = starts
  with pytest.raises(tf.errors.InvalidArgumentError, match=match):
    _embed_together(_make_network(2), _draw((12, 12, 12)), corners, (8, 8, 8))
