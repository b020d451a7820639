"""Elastic deformation: a smooth random displacement in x and y.

The published field is uniform(-1, 1) noise in every voxel, filtered with a
Gaussian over x, y and z (zero padding) and scaled. Filtering is linear and
separable, and a wide Gaussian leaves few directions along an axis: with sigma 8
11 of 64 and 6 of 32. So the field is drawn as 11 x 11 x 6 normal numbers and
spread by three small matrices, which has the same covariance without a random
number for every voxel or any filtering.
"""

import functools

import numpy as np
from scipy import ndimage
import tensorflow as tf

from transvw_tf2.perturb import random_numbers

# Of the filtered noise along one axis; the rest is left out.
_ENERGY = 1 - 1e-6
_TRUNCATE = 4.0  # of the Gaussian, in sigmas
_NOISE_VARIANCE = 1 / 3  # of uniform(-1, 1)


@functools.lru_cache(maxsize=32)
def filter_factor(length: int, sigma: float) -> np.ndarray:
  """Returns F such that F F^T is G G^T, the covariance of filtered noise.

  G is the Gaussian filter along one axis as a matrix and F its first left
  singular vectors times their singular values, as many as it takes for all but
  1e-6 of the energy.

  Args:
    length: voxels along the axis.
    sigma: of the Gaussian, voxels.

  Returns:
    float32 (length, rank), read-only.
  """
  gaussian = ndimage.gaussian_filter1d(
    np.eye(length), sigma, axis=0, mode='constant', truncate=_TRUNCATE
  )
  vectors, values, _ = np.linalg.svd(gaussian)
  energy = np.cumsum(values**2) / np.sum(values**2)
  rank = int(np.searchsorted(energy, _ENERGY)) + 1
  factor = (vectors[:, :rank] * values[:rank]).astype(np.float32)
  factor.setflags(write=False)
  return factor


def draw_displacement(
  seeds,
  cube_shape: tuple[int, int, int],
  sigma: float = 8.0,
  scale: float = 991.0,
  probability: float = 1.0,
):
  """Draws displacement fields.

  In a cube of 64 x 64 x 32 with the published settings the standard deviation
  is 3.8 voxels at the centre, 2.8 in the middle of a face, 2.0 in the middle of
  an edge and 1.5 at a corner.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    cube_shape: (X, Y, Z) voxels.
    sigma: of the Gaussian filter, voxels.
    scale: of the filtered noise, voxels.
    probability: of a field that is not zero.

  Returns:
    float32 (B, 2, X, Y, Z), displacement in x and in y, voxels.
  """
  factors = [filter_factor(length, sigma) for length in cube_shape]
  ranks = tuple(factor.shape[1] for factor in factors)
  field = random_numbers.draw_normal(
    seeds, random_numbers.Stream.ELASTIC, (2, *ranks)
  )
  field *= scale * _NOISE_VARIANCE**0.5
  if probability < 1:
    uniform = random_numbers.draw_uniform(
      seeds, random_numbers.Stream.ELASTIC_CHOICE, (1, 1, 1, 1)
    )
    field *= tf.cast(uniform < probability, tf.float32)
  field = tf.einsum('bdijk,xi->bdxjk', field, factors[0])
  field = tf.einsum('bdxjk,yj->bdxyk', field, factors[1])
  return tf.einsum('bdxyk,zk->bdxyz', field, factors[2])


def apply(cubes, displacement):
  """Moves the voxels of cubes: out[x, y, z] = cube[x + dx, y + dy, z].

  Linear interpolation, borders mirrored about the edge of the outermost voxel;
  the same as scipy.ndimage.map_coordinates(order=1, mode='reflect').

  Args:
    cubes: float32 (B, X, Y, Z, 1), fewer than 2**31 voxels.
    displacement: float32 (B, 2, X, Y, Z), in x and in y, voxels.

  Returns:
    float32 (B, X, Y, Z, 1).
  """
  size_x, size_y, size_z = cubes.shape[1:4]
  x = tf.reshape(tf.range(size_x, dtype=tf.float32), (-1, 1, 1))
  y = tf.reshape(tf.range(size_y, dtype=tf.float32), (-1, 1))
  x, weight_x = _split(x + displacement[:, 0], size_x)
  y, weight_y = _split(y + displacement[:, 1], size_y)
  # An axis of one voxel has no neighbours to interpolate between.
  if size_x == 1:
    cubes = tf.concat([cubes, cubes], axis=1)
  if size_y == 1:
    cubes = tf.concat([cubes, cubes], axis=2)
  size_x, size_y = cubes.shape[1:3]

  flat = tf.reshape(cubes, (-1,))
  cube = tf.reshape(tf.range(tf.shape(cubes)[0]), (-1, 1, 1, 1))
  # Single voxels are gathered, z innermost: neighbours in z lie side by side
  # and mostly move together.
  place = ((cube * size_x + x) * size_y + y) * size_z + tf.range(size_z)
  next_y, next_x = size_z, size_y * size_z
  # No place is beyond. The bound lets XLA see that the neighbours are inside
  # too; it then finds one address for all four: two thirds of the time.
  place = tf.clip_by_value(place, 0, tf.size(flat) - 1 - next_y - next_x)

  def interpolate_y(place):
    below = tf.gather(flat, place)
    above = tf.gather(flat, place + next_y)
    return (1 - weight_y) * below + weight_y * above

  moved = (1 - weight_x) * interpolate_y(place)
  moved += weight_x * interpolate_y(place + next_x)
  return moved[..., tf.newaxis]


def _split(place, length):
  """Splits mirrored places into a voxel and how far they are above it.

  The voxel is one that has a neighbour above, if any: what is at the outermost
  voxel is 1 above the one before.

  Args:
    place: float32 (B, X, Y, Z), any place along the axis, voxels.
    length: voxels along the axis.

  Returns:
    int32 and float32 (B, X, Y, Z).
  """
  # From the edge of the first voxel the mirrored axis has period 2 * length.
  place = place + 0.5
  place -= 2 * length * tf.floor(place / (2 * length))
  place = length - tf.abs(length - place)
  # In the outer half of the outermost voxel its mirror image is the neighbour.
  place = tf.clip_by_value(place - 0.5, 0.0, length - 1.0)
  below = tf.minimum(tf.floor(place), max(0.0, length - 2.0))
  return tf.cast(below, tf.int32), place - below
