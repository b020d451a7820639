"""Embeds cubes that overlap without computing again what they share.

A network sees zeros around a cube, so what a voxel gives depends on how far the
border is: of the first level, two convolutions of 3x3x3, only the two outermost
voxels. All further inside is the same for every cube that a voxel is part of.
Half of an encoder's time goes into that level.

So the first level is computed once for a box that many cubes lie in. What it
gives near the border of a cube is computed beside it, in the same convolution:
along each axis follow, behind the voxels of the box, for two cubes that follow
each other the first voxels of the one and the last of the other, with zeros
between (`_Axis`). As that is done for x, y and z, faces, edges and corners of
all cubes are found in one array. The vectors are those of the cubes alone but
for the order of sums.
"""

from collections.abc import Sequence
import dataclasses

import tensorflow as tf

from transvw_tf2.models import blocks
from transvw_tf2.models import convolutions
from transvw_tf2.models import unet3d

# A zero outside of a cube reaches one voxel further with each convolution.
_REACH = 2
# Voxels that what lies in reach is computed from; the least side of a cube.
_CONTEXT = 2 * _REACH
LEAST_SIDE = _CONTEXT
# Voxels of zeros between two pieces: one would do, but the pieces have to begin
# at even places, for they are halved.
_GAP = 2
# What a cube costs beyond the voxels of the box, along each axis.
EXTRA_VOXELS = 2 * _CONTEXT + _GAP
# Voxels along z whose features of the first level exist at once; even.
_ROWS = 16


@dataclasses.dataclass(frozen=True)
class _Axis:
  """Voxels of a box along an axis, then those near the borders of its cubes.

  Attributes:
    voxels: int32 (N,), which voxel of the box lies at a place; -1 for zeros.
    windows: int32 (cubes, side / 2), places of the pooled features of each
      cube, in an array that is 4 voxels shorter and then halved.
  """

  voxels: tf.Tensor
  windows: tf.Tensor

  @property
  def inside(self):
    """Bool (N,), whether there is a voxel, not a zero between pieces."""
    return self.voxels >= 0


def _make_axis(corners, side: int) -> _Axis:
  """Returns the axis of a box from its first corner to its last cube's end."""
  corners = corners - corners[0]
  count = tf.size(corners)
  length = corners[-1] + side
  gap = tf.fill((_GAP,), -1)
  first = corners[1:, tf.newaxis] + tf.range(_CONTEXT)
  last = corners[:-1, tf.newaxis] + tf.range(side - _CONTEXT, side)
  gaps = tf.fill((count - 1, _GAP), -1)
  pieces = tf.reshape(tf.concat([first, last, gaps], axis=1), (-1,))
  voxels = tf.concat([gap, tf.range(length), gap, pieces], axis=0)
  # A convolution takes one place off each end: two take off the first gap, so
  # that the box begins at 0 and the pieces behind the second.
  inner = corners[:, tf.newaxis] // 2 + tf.range(side // 2)
  begin = (length + _GAP + EXTRA_VOXELS * tf.range(count - 1)) // 2
  end = begin + (2 * _CONTEXT - _REACH) // 2
  windows = tf.concat(
    [
      tf.concat([inner[:1, 0], begin], axis=0)[:, tf.newaxis],
      inner[:, 1:-1],
      tf.concat([end, inner[-1:, -1]], axis=0)[:, tf.newaxis],
    ],
    axis=1,
  )
  return _Axis(voxels=voxels, windows=windows)


def embed_windows(
  encoder: unet3d.Encoder,
  volume,
  corners: Sequence,
  cube_shape: Sequence[int],
  grid: Sequence[int] = (1, 1, 1),
):
  """Embeds the cubes of a grid; batch norm by moving statistics.

  Args:
    encoder: of any network, built.
    volume: float32 (X, Y, Z) in [0, 1].
    corners: along x, y and z the lower corners of the cubes, int32 (N,), in
      ascending order, all odd or all even; each with each of the other axes
      makes a cube.
    cube_shape: voxels of a cube along x, y and z, each at least LEAST_SIDE.
    grid: see blocks.pool_grid.

  Returns:
    float32 (Nx * Ny * Nz, parts * embedding size), in [x, y, z] C order.

  Raises:
    ValueError: the cubes do not fit the network.
    tf.errors.InvalidArgumentError: corners are not as above, or a cube does not
      lie in the volume.
  """
  blocks.check_cubes_shape((None, *cube_shape, 1), encoder.depth)
  corners = [
    _check_corners(starts, side, length)
    for starts, side, length in zip(
      corners, cube_shape, tf.unstack(tf.shape(volume)), strict=True
    )
  ]
  box = tuple(
    slice(starts[0], starts[-1] + side)
    for starts, side in zip(corners, cube_shape, strict=True)
  )
  x, y, z = (
    _make_axis(starts, side)
    for starts, side in zip(corners, cube_shape, strict=True)
  )
  pooled = _run_first_level(encoder, volume[box], x, y, z)
  rows = tf.shape(y.windows)[0]

  # Cubes above each other are a batch.
  def embed_column(column):
    part = tf.gather(pooled, x.windows[column // rows], axis=1)
    part = tf.gather(part, y.windows[column % rows], axis=2)
    cubes = tf.gather(part, z.windows)
    sides = [side // 2 for side in cube_shape]
    cubes.set_shape((None, sides[2], sides[0], sides[1], pooled.shape[-1]))
    return blocks.pool_grid(encoder.finish(cubes), grid)

  embeddings = tf.map_fn(
    embed_column,
    tf.range(tf.shape(x.windows)[0] * rows),
    fn_output_signature=tf.float32,
    parallel_iterations=1,  # each takes all cores, and memory
  )
  return tf.reshape(embeddings, (-1, embeddings.shape[-1]))


def _check_corners(corners, side, length):
  """Returns the corners along an axis once they have been checked."""
  steps = corners[1:] - corners[:-1]
  ordered = tf.debugging.Assert(
    tf.reduce_all(steps > 0) & tf.reduce_all(steps % 2 == 0),
    ['corners: wanted ascending, all odd or all even, got', corners],
  )
  with tf.control_dependencies([ordered]):
    inside = tf.debugging.Assert(
      (tf.reduce_min(corners) >= 0) & (tf.reduce_max(corners) + side <= length),
      ['corners: wanted cubes inside of', length, 'voxels, got', corners],
    )
  # Without this an operation that such corners break may come first.
  with tf.control_dependencies([inside]):
    return tf.identity(corners)


def _run_first_level(encoder, box, x: _Axis, y: _Axis, z: _Axis):
  """Returns the pooled first level, (Z', X', Y', channels), of three axes."""
  places = tf.shape(z.voxels)[0] - _CONTEXT
  count = -(-places // _ROWS)
  padding = count * _ROWS - places
  z_voxels = tf.pad(z.voxels, [[0, padding]], constant_values=-1)
  plane = tf.logical_and(x.inside[:, tf.newaxis], y.inside)
  box = tf.transpose(box, (2, 0, 1))

  def run_rows(start):
    voxels = z_voxels[start : start + _ROWS + _CONTEXT]
    inside = tf.logical_and((voxels >= 0)[:, tf.newaxis, tf.newaxis], plane)
    part = box
    for axis, index in enumerate((voxels, x.voxels, y.voxels)):
      part = tf.gather(part, tf.maximum(index, 0), axis=axis)
    inside = tf.cast(inside, encoder.compute_dtype)[tf.newaxis, ..., tf.newaxis]
    part = tf.cast(part, encoder.compute_dtype)[tf.newaxis, ..., tf.newaxis]
    first, second = encoder.conv_blocks[:2]
    features = _run_block(first, part * inside)
    # A cube has zeros around the features too, where here a bias would be.
    features = _run_block(second, features * inside[:, 1:-1, 1:-1, 1:-1])
    return encoder.pool(features)[0]

  pooled = tf.map_fn(
    run_rows,
    _ROWS * tf.range(count),
    fn_output_signature=tf.as_dtype(encoder.compute_dtype),
    parallel_iterations=1,
  )
  return tf.reshape(pooled, tf.concat([[-1], tf.shape(pooled)[2:]], axis=0))


def _run_block(block, features):
  """Runs a block without zeros around, so each side gets two voxels shorter."""
  return block.run(
    lambda kernel: convolutions.convolve(features, kernel, padding='valid')
  )
