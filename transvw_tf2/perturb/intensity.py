"""Non-linear intensity: values go through a random monotone Bezier curve.

The curve is cubic, with control points (0, 0), (a, b), (c, d), (1, 1) where a,
b, c, d are uniform in [0, 1]; so x(t) and y(t) both rise. Half the curves map
x(t) to y(t), and half to y(1 - t): contrast inverted.
"""

from typing import NamedTuple

import tensorflow as tf

from transvw_tf2.perturb import random_numbers

# The curve is a chain of 2**12 lines, equally long in t. The published chain of
# 99,999 lines is within 5e-5 of it on random curves, mostly within 1e-6.
_HALVINGS = 12


class Curves(NamedTuple):
  """One curve for each cube.

  Attributes:
    points: float32 (B, 4), a, b, c, d in [0, 1].
    falling: bool (B,), whether the curve maps 0 to 1 and 1 to 0.
  """

  points: tf.Tensor
  falling: tf.Tensor


def draw_curves(seeds, inversion_probability: float = 0.5) -> Curves:
  """Draws curves.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    inversion_probability: of a falling curve.
  """
  uniform = random_numbers.draw_uniform(
    seeds, random_numbers.Stream.INTENSITY, (5,)
  )
  return Curves(uniform[:, :4], uniform[:, 4] < inversion_probability)


def apply(cubes, curves: Curves):
  """Maps voxel values through the curves.

  Args:
    cubes: float32 (B, X, Y, Z, 1) in [0, 1]; others are taken as 0 or 1.
    curves: one for each cube.

  Returns:
    float32 (B, X, Y, Z, 1) in [0, 1].
  """
  a, b, c, d = (
    tf.reshape(value, (-1, 1, 1, 1, 1))
    for value in tf.unstack(curves.points, axis=1)
  )
  falling = tf.reshape(curves.falling, (-1, 1, 1, 1, 1))
  # A table over x would be wrong where a curve is steep. Halving the interval
  # of t is arithmetic alone, which compiles to vector code.
  start, length = tf.zeros_like(cubes), 1.0
  for _ in range(_HALVINGS):
    length /= 2
    middle = start + length
    start = tf.where(_bezier(a, c, middle) <= cubes, middle, start)
  stop = start + length
  x0, x1 = _bezier(a, c, start), _bezier(a, c, stop)
  weight = tf.clip_by_value(
    tf.math.divide_no_nan(cubes - x0, x1 - x0), 0.0, 1.0
  )
  y0 = _bezier(b, d, tf.where(falling, 1 - start, start))
  y1 = _bezier(b, d, tf.where(falling, 1 - stop, stop))
  return y0 + weight * (y1 - y0)


def _bezier(first, second, t):
  """Returns 3 first t (1-t)^2 + 3 second t^2 (1-t) + t^3."""
  linear = 3 * first
  quadratic = 3 * second - 6 * first
  cubic = 1 + 3 * first - 3 * second
  return t * (linear + t * (quadratic + t * cubic))
