"""Intensity curves against the published table look-up in NumPy."""

import numpy as np
import pytest
from scipy import stats

from transvw_tf2.perturb import intensity


def _seeds(count):
  rng = np.random.default_rng(15)
  return rng.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)


def _look_up(values, points, falling):
  """Maps values through a table of 100,000 points, as published."""
  a, b, c, d = points.astype(np.float64)
  t = np.linspace(0, 1, 100_000)
  x = 3 * a * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + t**3
  y = 3 * b * t * (1 - t) ** 2 + 3 * d * t**2 * (1 - t) + t**3
  y = np.sort(y)[::-1] if falling else np.sort(y)
  return np.interp(values, np.sort(x), y)


@pytest.mark.parametrize('falling', [False, True])
def test_apply_equals_the_published_table(falling):
  rng = np.random.default_rng(16)
  cubes = rng.random((300, 8, 8, 4, 1)).astype(np.float32)
  cubes[:, 0] *= 0.01  # where a curve can be steepest
  cubes[:, 1] = 1 - 0.01 * cubes[:, 1]
  points = rng.random((300, 4)).astype(np.float32)
  curves = intensity.Curves(points, np.full(300, falling))
  got = intensity.apply(cubes, curves).numpy()
  assert got.shape == cubes.shape and got.dtype == np.float32
  for cube, point, mapped in zip(cubes, points, got, strict=True):
    want = _look_up(cube, point, falling)
    np.testing.assert_allclose(mapped, want, rtol=0, atol=3e-5)


@pytest.mark.parametrize('falling', [False, True])
@pytest.mark.parametrize(
  'points',
  [(1, 0, 0, 1), (0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0), (0, 0, 0, 0)],
)
def test_apply_of_the_steepest_curves(points, falling):
  values = np.linspace(0, 1, 4001).astype(np.float32)
  # Where x(t) stands still rounding of the value alone moves y.
  points = np.array(points, np.float32)
  curves = intensity.Curves(points[None], np.array([falling]))
  got = intensity.apply(values.reshape(1, -1, 1, 1, 1), curves).numpy().ravel()
  want = _look_up(values, points, falling)
  np.testing.assert_allclose(got, want, rtol=0, atol=5e-3)
  steps = np.diff(got)
  assert np.all(steps <= 1e-5 if falling else steps >= -1e-5)


def test_ends_are_exact_and_values_outside_are_clipped():
  values = np.array([0, 1, -0.5, 1.5], np.float32).reshape(1, 4, 1, 1, 1)
  points = np.random.default_rng(17).random((20, 4)).astype(np.float32)
  falling = np.arange(20) % 2 == 1
  got = intensity.apply(
    np.repeat(values, 20, axis=0), intensity.Curves(points, falling)
  ).numpy()[:, :, 0, 0, 0]
  np.testing.assert_allclose(got[::2], [[0, 1, 0, 1]] * 10, atol=1e-6)
  np.testing.assert_allclose(got[1::2], [[1, 0, 1, 0]] * 10, atol=1e-6)


def test_points_on_the_diagonal_change_nothing():
  cubes = np.random.default_rng(18).random((2, 5, 6, 7, 1)).astype(np.float32)
  points = np.array([[0.1, 0.1, 0.4, 0.4], [1 / 3, 1 / 3, 2 / 3, 2 / 3]])
  curves = intensity.Curves(points.astype(np.float32), np.array([False, True]))
  got = intensity.apply(cubes, curves).numpy()
  np.testing.assert_allclose(got[0], cubes[0], atol=1e-5)
  np.testing.assert_allclose(got[1], 1 - cubes[1], atol=1e-5)


def test_drawn_curves():
  curves = intensity.draw_curves(_seeds(4000))
  points, falling = curves.points.numpy(), curves.falling.numpy()
  assert points.shape == (4000, 4) and points.dtype == np.float32
  for column in points.T:
    assert stats.kstest(column, 'uniform').pvalue > 1e-3
  together = np.column_stack([points, falling])
  np.testing.assert_allclose(
    np.corrcoef(together, rowvar=False), np.eye(5), atol=4.5 / 4000**0.5
  )
  # Binomial, standard deviation 31.6.
  assert abs(falling.sum() - 2000) < 4 * 31.6


def test_probability_of_inversion():
  seeds = _seeds(2000)
  assert not intensity.draw_curves(seeds, 0.0).falling.numpy().any()
  assert intensity.draw_curves(seeds, 1.0).falling.numpy().all()
  falling = intensity.draw_curves(seeds, 0.2).falling.numpy()
  assert abs(falling.sum() - 400) < 4 * 17.9
