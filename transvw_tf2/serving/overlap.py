"""Cuts a grid of overlapping cubes into boxes whose cubes share their work.

See models/sliding_windows: the cubes of a box have the first level of the
network in common. The larger the box, the more they share, and the more memory
the features of that level take.
"""

from collections.abc import Sequence
import itertools
import math

import numpy as np

from transvw_tf2.models import sliding_windows

# Of a box and what its cubes add to it: pooled features of 0.27 GB, twice while
# they are gathered, where the first level has 64 channels of float32. Boxes
# twice as large were 3 % faster, half as large 6 % slower.
_MOST_VOXELS = 2**23
# Below it, in voxels computed for each of a cube, sharing is worth its copies.
_WORTH = 0.8

# Of the corners of a box along x, y and z their numbers among all corners.
Box = tuple[np.ndarray, np.ndarray, np.ndarray]


def cut_boxes(
  corners: Sequence[np.ndarray], cube_shape: Sequence[int], most_z: int
) -> list[Box]:
  """Returns boxes that hold each cube of a grid once.

  Args:
    corners: ascending lower corners of the cubes along x, y and z, in voxels.
    cube_shape: voxels of a cube along x, y and z.
    most_z: cubes of a box along z at most; those above each other are a batch.

  Returns:
    The boxes; the corners of one are all odd or all even along each axis.
  """
  counts = [len(corners[0]), len(corners[1]), min(len(corners[2]), most_z)]
  groups = [
    _group(starts, count) for starts, count in zip(corners, counts, strict=True)
  ]

  def longest(axis):
    return max(
      _count_voxels(corners[axis][group], cube_shape[axis])
      for group in groups[axis]
    )

  while math.prod(map(longest, range(3))) > _MOST_VOXELS and max(counts) > 1:
    axis = max((a for a in range(3) if counts[a] > 1), key=longest)
    counts[axis] -= 1
    groups[axis] = _group(corners[axis], counts[axis])
  return list(itertools.product(*groups))


def saves_work(
  boxes: Sequence[Box],
  corners: Sequence[np.ndarray],
  cube_shape: Sequence[int],
) -> bool:
  """Returns whether the boxes compute far less than the cubes alone."""
  shared, alone = 0, 0
  for box in boxes:
    alone += math.prod(map(len, box)) * math.prod(cube_shape)
    shared += math.prod(
      _count_voxels(starts[group], side)
      for starts, group, side in zip(corners, box, cube_shape, strict=True)
    )
  return shared <= _WORTH * alone


def _count_voxels(starts, side) -> int:
  """Returns what is computed along an axis for cubes at `starts`."""
  extra = sliding_windows.EXTRA_VOXELS * (len(starts) - 1)
  return int(starts[-1] - starts[0]) + side + extra


def _group(starts, most: int) -> list[np.ndarray]:
  """Returns numbers of corners, as many in each group as far as possible."""
  groups = []
  for parity in (0, 1):
    numbers = np.flatnonzero(starts % 2 == parity)
    if len(numbers):
      groups += np.array_split(numbers, -(-len(numbers) // most))
  return groups
