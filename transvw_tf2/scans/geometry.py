"""Where the voxels of a scan lie: size, spacing, origin and direction."""

import dataclasses
import functools
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
  """Geometry of a scan indexed [x, y, z], in the LPS world of DICOM and ITK.

  Attributes:
    size: voxels along x, y and z.
    spacing: mm between voxel centres along x, y and z.
    origin: world position (LPS, mm) of the centre of voxel (0, 0, 0).
    direction: row-major 3x3 matrix; its columns are the world directions of
      the x, y and z index axes.
  """

  size: tuple[int, int, int]
  spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
  origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
  direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

  @functools.cached_property
  def _index_to_world(self) -> np.ndarray:
    return np.reshape(self.direction, (3, 3)) @ np.diag(self.spacing)

  def voxel_to_world(self, voxels) -> np.ndarray:
    """Maps voxel coordinates (..., 3) to float64 world mm (..., 3)."""
    voxels = np.asarray(voxels, np.float64)
    return voxels @ self._index_to_world.T + np.asarray(self.origin)

  def world_to_voxel(self, points) -> np.ndarray:
    """Maps world mm (..., 3) to float64 continuous voxels (..., 3)."""
    offset = np.asarray(points, np.float64) - np.asarray(self.origin)
    return offset @ np.linalg.inv(self._index_to_world).T


@dataclasses.dataclass(frozen=True)
class Reorientation:
  """How the axes of an array are permuted, then flipped.

  Attributes:
    axes: the old axis of each new axis.
    flips: whether each new axis runs backwards along its old one.
  """

  axes: tuple[int, int, int]
  flips: tuple[bool, bool, bool]

  def of_array(self, array: np.ndarray) -> np.ndarray:
    """Returns a view of an array (three axes) with the new axes."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
    return array.transpose(self.axes)[steps]

  def of_geometry(self, geometry: Geometry) -> Geometry:
    """Returns the geometry of `of_array`: each voxel stays in its place."""
    corner = [0, 0, 0]
    columns = []
    for axis, flip in zip(self.axes, self.flips, strict=True):
      column = np.reshape(geometry.direction, (3, 3))[:, axis]
      columns.append(-column if flip else column)
      corner[axis] = geometry.size[axis] - 1 if flip else 0
    # + 0.0 turns -0.0 into 0.0.
    direction = np.stack(columns, axis=1).ravel() + 0.0
    return Geometry(
      size=tuple(int(geometry.size[axis]) for axis in self.axes),
      spacing=tuple(float(geometry.spacing[axis]) for axis in self.axes),
      origin=tuple(float(one) for one in geometry.voxel_to_world(corner)),
      direction=tuple(float(one) for one in direction),
    )


def nearest_lps(geometry: Geometry) -> Reorientation:
  """Returns what brings x, y and z nearest to left, posterior and superior."""
  matrix = np.reshape(geometry.direction, (3, 3))
  # The permutation whose axes lie best along the world's.
  axes = max(
    itertools.permutations(range(3)),
    key=lambda order: sum(abs(matrix[i, order[i]]) for i in range(3)),
  )
  flips = tuple(bool(matrix[i, axes[i]] < 0) for i in range(3))
  return Reorientation(axes, flips)
