"""Elastic deformation against SciPy's interpolation and filter."""

import numpy as np
import pytest
from scipy import ndimage
import tensorflow as tf

from transvw_tf2.perturb import elastic

_SHAPE = (64, 64, 32)


def _seeds(count):
  rng = np.random.default_rng(5)
  return rng.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)


def _cubes(shape, count=2):
  rng = np.random.default_rng(6)
  return rng.random((count, *shape, 1)).astype(np.float32)


def _deform_with_scipy(cube, displacement):
  """Moves float (X, Y, Z) by float (2, X, Y, Z), in float64."""
  places = np.indices(cube.shape).astype(np.float64)
  places[:2] += displacement
  return ndimage.map_coordinates(
    cube.astype(np.float64), places, order=1, mode='reflect'
  )


def _filter_matrix(length, sigma=8.0):
  return ndimage.gaussian_filter1d(
    np.eye(length), sigma, axis=0, mode='constant', truncate=4.0
  )


def _variance(length):
  filter_matrix = _filter_matrix(length)
  return np.sum(filter_matrix**2, axis=1)


@pytest.mark.parametrize(
  ('shape', 'reach'),
  [
    ((64, 64, 32), 20),
    ((16, 16, 8), 40),  # further than the mirrored cube
    ((5, 7, 3), 30),
    ((1, 4, 2), 3),
    ((2, 1, 1), 5),
  ],
)
def test_apply_equals_scipy(shape, reach):
  cubes = _cubes(shape)
  rng = np.random.default_rng(7)
  displacement = rng.uniform(-reach, reach, (2, 2, *shape)).astype(np.float32)
  got = elastic.apply(cubes, displacement).numpy()
  assert got.shape == cubes.shape and got.dtype == np.float32
  for cube, field, moved in zip(cubes, displacement, got, strict=True):
    want = _deform_with_scipy(cube[..., 0], field)
    np.testing.assert_allclose(moved[..., 0], want, rtol=0, atol=1e-5)


def test_apply_of_a_drawn_field_equals_scipy():
  cubes = _cubes(_SHAPE)
  displacement = elastic.draw_displacement(_seeds(2), _SHAPE).numpy()
  got = elastic.apply(cubes, displacement).numpy()
  for cube, field, moved in zip(cubes, displacement, got, strict=True):
    want = _deform_with_scipy(cube[..., 0], field)
    np.testing.assert_allclose(moved[..., 0], want, rtol=0, atol=1e-5)
    assert np.abs(want - cube[..., 0]).mean() > 0.1


def test_apply_moves_by_whole_voxels_in_x_and_y():
  cube = _cubes((6, 5, 3), count=1)
  field = np.zeros((1, 2, 6, 5, 3), np.float32)
  field[:, 0], field[:, 1] = 4, -2
  got = elastic.apply(cube, field).numpy()[0, ..., 0]
  padded = np.pad(cube[0, ..., 0], ((0, 4), (2, 0), (0, 0)), mode='symmetric')
  np.testing.assert_array_equal(got, padded[4:, :5])


def test_apply_of_no_displacement_changes_nothing():
  cubes = _cubes((9, 6, 4))
  got = elastic.apply(cubes, np.zeros((2, 2, 9, 6, 4), np.float32))
  np.testing.assert_array_equal(got, cubes)


@pytest.mark.parametrize(('length', 'rank'), [(64, 11), (32, 6)])
def test_factor_has_the_covariance_of_filtered_noise(length, rank):
  factor = elastic.filter_factor(length, 8.0)
  assert factor.shape == (length, rank) and factor.dtype == np.float32
  filter_matrix = _filter_matrix(length)
  want = filter_matrix @ filter_matrix.T
  got = factor.astype(np.float64) @ factor.T
  left_out = 1 - np.trace(got) / np.trace(want)
  assert abs(left_out) < 1e-5
  np.testing.assert_allclose(got, want, atol=1e-4 * want.max())


@pytest.mark.parametrize('sigma', [0.5, 1.0, 3.0])
def test_factor_of_narrow_filters(sigma):
  factor = elastic.filter_factor(12, sigma)
  filter_matrix = _filter_matrix(12, sigma)
  want = filter_matrix @ filter_matrix.T
  np.testing.assert_allclose(factor @ factor.T, want, atol=1e-3 * want.max())


@pytest.fixture(scope='module', name='fields')
def _drawn_fields():
  """Voxels of 960 fields on a grid, (960, 2, 5, 5, 5)."""
  grid = np.ix_([0, 24, 32, 40, 63], [0, 24, 32, 40, 63], [0, 8, 16, 24, 31])
  chunks = np.split(_seeds(960), 20)
  return np.concatenate(
    [
      elastic.draw_displacement(seeds, _SHAPE).numpy()[(..., *grid)]
      for seeds in chunks
    ]
  )


def test_field_has_the_variance_of_filtered_noise(fields):
  along_x, along_z = _variance(64), _variance(32)
  along_x = along_x[[0, 24, 32, 40, 63]]
  along_z = along_z[[0, 8, 16, 24, 31]]
  want = 991 * np.sqrt(np.einsum('i,j,k->ijk', along_x, along_x, along_z) / 3)
  # Centre, middle of a face and a corner, in voxels.
  assert want[2, 2, 2] == pytest.approx(3.78, abs=0.01)
  assert want[0, 2, 2] == pytest.approx(2.77, abs=0.01)
  assert want[2, 2, 0] == pytest.approx(2.77, abs=0.01)
  assert want[0, 0, 0] == pytest.approx(1.48, abs=0.01)
  got = fields.std(axis=(0, 1))
  # 1920 numbers give a standard deviation within 1.6 % (one sigma).
  np.testing.assert_allclose(got, want, rtol=4.5 * 0.016)
  error = want / 1920**0.5
  assert np.all(np.abs(fields.mean(axis=(0, 1))) < 4.5 * error)


def test_field_is_as_smooth_as_filtered_noise(fields):
  # In the middle of the cube noise filtered with sigma s is correlated over
  # a distance d by exp(-d^2 / (4 s^2)).
  centre = fields[:, :, 2, 2, 2].ravel()
  want = np.exp(-(8**2) / (4 * 8**2))
  for neighbour in (fields[:, :, 1, 2, 2], fields[:, :, 2, 3, 2]):
    got = np.corrcoef(centre, neighbour.ravel())[0, 1]
    assert got == pytest.approx(want, abs=0.04)
  filter_matrix = _filter_matrix(32)
  covariance = filter_matrix @ filter_matrix.T
  want = covariance[16, 24] / np.sqrt(covariance[16, 16] * covariance[24, 24])
  got = np.corrcoef(centre, fields[:, :, 2, 2, 3].ravel())[0, 1]
  assert got == pytest.approx(want, abs=0.04)


def test_displacements_in_x_and_y_are_independent(fields):
  centre = fields[:, :, 2, 2, 2]
  assert abs(np.corrcoef(centre, rowvar=False)[0, 1]) < 4.5 / 960**0.5


def test_scale_sigma_and_shape():
  seeds = _seeds(3)
  field = elastic.draw_displacement(seeds, (10, 7, 5), sigma=2.0).numpy()
  assert field.shape == (3, 2, 10, 7, 5) and field.dtype == np.float32
  scaled = elastic.draw_displacement(seeds, (10, 7, 5), sigma=2.0, scale=99.1)
  np.testing.assert_allclose(scaled, field / 10, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(
    elastic.draw_displacement(seeds, (10, 7, 5), scale=0.0), 0 * field
  )


def test_probability_of_a_field():
  seeds = _seeds(2000)
  shape = (4, 4, 2)
  fields = elastic.draw_displacement(seeds, shape, probability=0.3).numpy()
  moved = np.any(fields != 0, axis=(1, 2, 3, 4))
  # Binomial, standard deviation 20.5.
  assert abs(moved.sum() - 600) < 4 * 20.5
  always = elastic.draw_displacement(seeds, shape).numpy()
  np.testing.assert_allclose(fields[moved], always[moved], rtol=1e-6)
  never = elastic.draw_displacement(seeds, shape, probability=0.0).numpy()
  assert not never.any()


def test_in_a_dataset():
  cubes, seeds = _cubes((8, 8, 4), count=4), _seeds(4)

  def deform(cubes, seeds):
    field = elastic.draw_displacement(seeds, (8, 8, 4))
    return elastic.apply(cubes, field)

  dataset = tf.data.Dataset.from_tensor_slices((cubes, seeds)).batch(2)
  got = np.concatenate(list(dataset.map(deform).as_numpy_iterator()))
  np.testing.assert_allclose(got, deform(cubes, seeds), atol=1e-5)
