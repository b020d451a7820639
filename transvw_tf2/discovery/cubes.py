"""Cuts cubes out of scans."""

import functools

import numpy as np

from transvw_tf2 import schema
from transvw_tf2.scans import thumbnail


@functools.lru_cache(maxsize=256)
def _linear_weights(source: int, target: int) -> np.ndarray:
  """Returns float32 (target, source): linear resampling along one axis.

  Half-pixel centres; beyond the outermost centres the samples are mirrored
  about them (SciPy's 'mirror', scikit-image's 'reflect').
  """
  position = (np.arange(target) + 0.5) * (source / target) - 0.5
  lower = np.floor(position).astype(int)
  fraction = position - lower
  weights = np.zeros((target, source), np.float64)
  rows = np.arange(target)
  last = source - 1
  for index, weight in ((lower, 1.0 - fraction), (lower + 1, fraction)):
    mirrored = last - np.abs(last - np.abs(index))
    np.add.at(weights, (rows, mirrored), weight)
  weights = weights.astype(np.float32)
  weights.setflags(write=False)
  return weights


def cut_cube(
  hu: np.ndarray, origin, size, *, anti_aliasing: bool = False
) -> np.ndarray:
  """Cuts a box out of a scan and brings it to the shape of a cube.

  Values are clipped to the HU window before resizing. A box of the cube's own
  size is exact; a resized one is rounded, which costs at most 0.5 HU.

  Args:
    hu: int16 [x, y, z], HU, the whole scan.
    origin: lower corner of the box, voxels [x, y, z].
    size: sides of the box in voxels; along z that of the cube, unless with
      anti-aliasing.
    anti_aliasing: smooth before taking fewer samples, as scikit-image's
      `resize` does; the published method does not.

  Returns:
    int16 `schema.CUBE_SHAPE` [x, y, z], HU in [-1000, 1000].
  """
  (x, y, z), (width, height, depth) = origin, size
  box = hu[x : x + width, y : y + height, z : z + depth]
  if box.shape != tuple(size) or min(origin) < 0:
    raise ValueError(
      f'box at {tuple(origin)} of size {tuple(size)} does not lie inside the'
      f' scan of {hu.shape} voxels'
    )
  box = np.clip(box, schema.HU_MIN, schema.HU_MAX)
  if tuple(size) == schema.CUBE_SHAPE:
    return box.astype(np.int16)
  if depth != schema.CUBE_SHAPE[2] and not anti_aliasing:
    raise ValueError(f'a box has {schema.CUBE_SHAPE[2]} slices, got {depth}')
  weights = thumbnail.resize_weights if anti_aliasing else _linear_weights
  to_x = weights(width, schema.CUBE_SHAPE[0])
  to_y = weights(height, schema.CUBE_SHAPE[1])
  box = box.astype(np.float32)
  if anti_aliasing:
    # Along z first: a scan with thin slices has the most of them.
    box = np.matmul(box, weights(depth, schema.CUBE_SHAPE[2]).T)
  resized = np.tensordot(to_x, box, axes=(1, 0))
  resized = np.matmul(to_y, resized)  # over y, one matrix per x
  return np.rint(resized).astype(np.int16)
