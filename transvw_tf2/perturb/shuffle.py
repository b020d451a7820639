"""Local shuffling: the voxels of a few small blocks change places."""

import math
from typing import NamedTuple

import tensorflow as tf

from transvw_tf2.perturb import random_numbers

_LARGEST_PART = 10  # a side is at most the tenth part of the cube's


class Blocks(NamedTuple):
  """N blocks for each cube.

  Attributes:
    corners: int32 (B, N, 3), lower corners, voxels.
    sides: int32 (B, N, 3), voxels.
    orders: int32 (B, N, V), V the voxels of the largest block: voxel i of the
      block (C order) gets the value of voxel orders[..., i]. The first n
      entries, for a block of n voxels, are a permutation of 0 .. n - 1; the
      rest is not used.
  """

  corners: tf.Tensor
  sides: tf.Tensor
  orders: tf.Tensor


def draw_blocks(
  seeds, cube_shape: tuple[int, int, int], blocks: int = 5
) -> Blocks:
  """Draws blocks and the order of their voxels.

  Sides are uniform integers in [1, length // 10] (1 where that is 0), corners
  in [0, length - side].

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    cube_shape: (X, Y, Z) voxels.
    blocks: N.
  """
  largest = [max(1, length // _LARGEST_PART) for length in cube_shape]
  uniform = random_numbers.draw_uniform(
    seeds, random_numbers.Stream.SHUFFLE_BLOCKS, (2, blocks, 3)
  )
  sides = random_numbers.to_integers(uniform[:, 0], 1, largest)
  corners = random_numbers.to_integers(uniform[:, 1], 0, cube_shape - sides)
  size = math.prod(largest)
  keys = random_numbers.draw_uniform(
    seeds, random_numbers.Stream.SHUFFLE_ORDER, (blocks, size)
  )
  # Sorting random keys orders them at random; what is beyond the block's own
  # voxels goes to the end.
  outside = tf.range(size) >= tf.reduce_prod(sides, axis=-1, keepdims=True)
  orders = tf.argsort(tf.where(outside, 2.0, keys), axis=-1, stable=True)
  return Blocks(corners, sides, orders)


def apply(cubes, blocks: Blocks):
  """Shuffles the voxels of the blocks.

  All values are those of the cube before; where blocks overlap, the later one
  overwrites.

  Args:
    cubes: float32 (B, X, Y, Z, 1).
    blocks: of draw_blocks, for cubes of this shape.

  Returns:
    float32 (B, X, Y, Z, 1).
  """
  # A small block names its voxels again and again until V are named: all
  # shapes are fixed, and the same value is written twice.
  voxels = tf.reduce_prod(blocks.sides, axis=-1, keepdims=True)
  target = tf.range(blocks.orders.shape[-1]) % voxels
  source = tf.gather(blocks.orders, target, batch_dims=2)
  values = tf.gather_nd(cubes, _place_in_batch(source, blocks))
  target = _place_in_batch(target, blocks)
  # In place where XLA compiles it; on flat cubes it would copy the result.
  for block in range(target.shape[1]):
    cubes = tf.tensor_scatter_nd_update(
      cubes, target[:, block], values[:, block]
    )
  return cubes


def _place_in_batch(index, blocks):
  """Returns (cube, x, y, z) of places in the flat blocks, (B, N, V, 4)."""
  side_y, side_z = (blocks.sides[..., axis, tf.newaxis] for axis in (1, 2))
  x, y, z = (blocks.corners[..., axis, tf.newaxis] for axis in range(3))
  x += index // (side_y * side_z)
  y += index // side_z % side_y
  z += index % side_z
  cube = tf.reshape(tf.range(tf.shape(index)[0]), (-1, 1, 1))
  return tf.stack([tf.broadcast_to(cube, tf.shape(x)), x, y, z], axis=-1)
