"""In-painting and out-painting: a block, or all around it, is painted over."""

from typing import NamedTuple

import tensorflow as tf

from transvw_tf2.perturb import random_numbers

KERAS = 'keras'
PYTORCH = 'pytorch'
VARIANTS = (KERAS, PYTORCH)

# Keras: voxels painted along an axis, whatever the cube.
_SMALLEST = 10
_LARGEST = 20
_MARGIN = 3  # voxels between the block and the faces of the cube


class Block(NamedTuple):
  """One block for each cube.

  Attributes:
    corners: int32 (B, 3), lower corners, voxels.
    sides: int32 (B, 3), voxels.
  """

  corners: tf.Tensor
  sides: tf.Tensor


def inpaint_sides(length: int, variant: str = KERAS) -> tuple[int, int]:
  """Returns the smallest and the largest side of a block that is painted.

  They are 10 and 20 voxels in the Keras variant; where the cube has fewer than
  26, the fewest that hold 20 and both margins, they shrink in proportion. They
  are length // 6 and length // 3 in the PyTorch variant. At least 1.

  Args:
    length: of the cube along this axis, voxels.
    variant: 'keras' or 'pytorch'.
  """
  if variant == PYTORCH:
    smallest, largest = length // 6, length // 3
  else:
    smallest, largest = _keras_sides(length)
  return max(1, smallest), max(1, largest)


def outpaint_sides(length: int, variant: str = KERAS) -> tuple[int, int]:
  """Returns the smallest and the largest side of a block that is kept.

  It leaves as many voxels as inpaint_sides in the Keras variant, and from
  3 length // 7 to 4 length // 7 in the PyTorch variant. At least 1 is kept.

  Args:
    length: of the cube along this axis, voxels.
    variant: 'keras' or 'pytorch'.
  """
  if variant == PYTORCH:
    fewest, most = 3 * length // 7, 4 * length // 7
  else:
    fewest, most = _keras_sides(length)
  return max(1, length - most), max(1, length - fewest)


def _keras_sides(length):
  needed = _LARGEST + 2 * _MARGIN
  if length >= needed:
    return _SMALLEST, _LARGEST
  return _SMALLEST * length // needed, _LARGEST * length // needed


def draw_inpaint_block(
  seeds, cube_shape: tuple[int, int, int], variant: str = KERAS
) -> Block:
  """Draws the block that in-painting paints.

  Sides are uniform integers in inpaint_sides, corners in [margin, length - side
  - margin]. The margin is 3 voxels, or less where the largest block leaves
  less.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    cube_shape: (X, Y, Z) voxels.
    variant: 'keras' or 'pytorch'.
  """
  ranges = [inpaint_sides(length, variant) for length in cube_shape]
  stream = random_numbers.Stream.INPAINT
  return _draw_block(seeds, stream, cube_shape, ranges)


def draw_outpaint_block(
  seeds, cube_shape: tuple[int, int, int], variant: str = KERAS
) -> Block:
  """Draws the block that out-painting keeps.

  As draw_inpaint_block, with outpaint_sides.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    cube_shape: (X, Y, Z) voxels.
    variant: 'keras' or 'pytorch'.
  """
  ranges = [outpaint_sides(length, variant) for length in cube_shape]
  stream = random_numbers.Stream.OUTPAINT
  return _draw_block(seeds, stream, cube_shape, ranges)


def _draw_block(seeds, stream, cube_shape, ranges):
  uniform = random_numbers.draw_uniform(seeds, stream, (2, 3))
  smallest, largest = zip(*ranges, strict=True)
  margins = tf.constant(
    [
      min(_MARGIN, (length - side) // 2)
      for length, side in zip(cube_shape, largest, strict=True)
    ]
  )
  sides = random_numbers.to_integers(
    uniform[:, 0], smallest, tf.constant(largest)
  )
  corners = random_numbers.to_integers(
    uniform[:, 1], margins, tf.constant(cube_shape) - sides - margins
  )
  return Block(corners, sides)


def draw_fill(seeds, cube_shape: tuple[int, int, int], variant: str = KERAS):
  """Draws what is painted, uniform in [0, 1).

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    cube_shape: (X, Y, Z) voxels.
    variant: 'keras', one value for each cube, or 'pytorch', one for each voxel.

  Returns:
    float32 (B, 1, 1, 1, 1) or (B, X, Y, Z, 1).
  """
  shape = tuple(cube_shape) if variant == PYTORCH else (1, 1, 1)
  return random_numbers.draw_uniform(
    seeds, random_numbers.Stream.FILL, (*shape, 1)
  )


def inpaint(cubes, block: Block, fill):
  """Paints the block.

  Args:
    cubes: float32 (B, X, Y, Z, 1).
    block: one for each cube.
    fill: float32 that broadcasts against the cubes.

  Returns:
    float32 (B, X, Y, Z, 1).
  """
  return tf.where(_is_inside(block, cubes.shape[1:4]), fill, cubes)


def outpaint(cubes, block: Block, fill):
  """Paints everything outside the block; arguments as inpaint."""
  return tf.where(_is_inside(block, cubes.shape[1:4]), cubes, fill)


def _is_inside(block, cube_shape):
  """Returns bool (B, X, Y, Z, 1)."""
  inside = True
  for axis, length in enumerate(cube_shape):
    place = tf.range(length) - block.corners[:, axis, tf.newaxis]
    along = (place >= 0) & (place < block.sides[:, axis, tf.newaxis])
    shape = [-1, 1, 1, 1, 1]
    shape[axis + 1] = length
    inside &= tf.reshape(along, shape)
  return inside
