"""Cuts the cubes and masks of target tasks out of scans.

Unlike the cubes of visual words they may have any shape, may reach beyond the
scan, and may be boxes of a size in mm that are resampled.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import thumbnail

# A U-Net halves a cube three times.
SIDE_STEP = 8
DEFAULT_SHAPE = schema.CUBE_SHAPE


@dataclasses.dataclass(frozen=True, order=True)
class Box:
  """A box in a scan.

  Attributes:
    origin: lower corner, voxels [x, y, z]; outside of the scan where the box
      reaches beyond it.
    size: sides in voxels.
  """

  origin: tuple[int, int, int]
  size: tuple[int, int, int]

  @property
  def middle(self) -> np.ndarray:
    """The middle of the box, float (3,) continuous voxels [x, y, z]."""
    return np.array(self.origin) + (np.array(self.size) - 1) / 2


@dataclasses.dataclass(frozen=True)
class CubeSize:
  """What a cube is made of.

  Attributes:
    shape: voxels of the cube, [x, y, z], each divisible by 8.
    extent_mm: sides of the box that is resampled to that shape, mm along the
      axes of the scan; None takes as many voxels of the scan as the cube has.

  Raises:
    errors.UserError: a value is out of its range.
  """

  shape: Sequence[int] = DEFAULT_SHAPE
  extent_mm: Sequence[float] | None = None

  def __post_init__(self):
    shape, extent = self.shape, self.extent_mm
    if not _is_three(shape, int) or any(
      side < 1 or side % SIDE_STEP for side in shape
    ):
      raise errors.UserError(
        'cube_shape must be three positive integers divisible by'
        f' {SIDE_STEP}, such as [64, 64, 32], got {shape!r}'
      )
    object.__setattr__(self, 'shape', tuple(shape))
    if extent is None:
      return
    if not _is_three(extent, (int, float)) or not all(
      0 < side < np.inf for side in extent
    ):
      raise errors.UserError(
        'extent_mm must be three positive numbers in mm, such as [64, 64, 40],'
        f' or null, got {extent!r}'
      )
    object.__setattr__(self, 'extent_mm', tuple(map(float, extent)))

  def box_around(self, geometry: geometry_lib.Geometry, voxel) -> Box:
    """Returns the box with a place in its middle.

    The voxel of the place is the middle one, of an even side the first after
    the middle.

    Args:
      geometry: of the scan.
      voxel: the place, (3,) continuous voxels [x, y, z].
    """
    size = np.asarray(self.shape)
    if self.extent_mm:
      size = np.rint(np.divide(self.extent_mm, geometry.spacing))
      size = np.maximum(size, 1).astype(int)
    origin = np.floor(np.asarray(voxel) + 0.5).astype(int) - size // 2
    return Box(tuple(origin.tolist()), tuple(size.tolist()))


def _is_three(values, kind) -> bool:
  return (
    isinstance(values, Sequence)
    and len(values) == 3
    and all(isinstance(one, kind) for one in values)
    and not any(isinstance(one, bool) for one in values)
  )


def holds(geometry: geometry_lib.Geometry, voxel) -> bool:
  """Returns whether a place, continuous voxels (3,), lies in a scan."""
  voxel = np.asarray(voxel)
  return bool(
    np.all(voxel >= -0.5) and np.all(voxel <= np.array(geometry.size) - 0.5)
  )


def cut_cube(hu: np.ndarray, box: Box, shape: Sequence[int]) -> np.ndarray:
  """Cuts a box out of a scan and brings it to the shape of a cube.

  What lies beyond the scan is air. A box of the cube's own shape is exact;
  another one is resized linearly with anti-aliasing and rounded, which costs
  at most 0.5 HU.

  Args:
    hu: int16 [x, y, z], HU, the whole scan.
    box: in that scan.
    shape: voxels of the cube, [x, y, z].

  Returns:
    int16 `shape` [x, y, z], HU in [-1000, 1000].
  """
  taken = _take(hu, box, schema.HU_MIN)
  if box.size != tuple(shape):
    return thumbnail.make_thumbnail(taken, shape)
  return np.clip(taken, schema.HU_MIN, schema.HU_MAX)


def cut_mask(mask: np.ndarray, box: Box, shape: Sequence[int]) -> np.ndarray:
  """Cuts a box out of a mask; nearest neighbours where it is resampled.

  Args:
    mask: bool [x, y, z], the whole mask of the scan.
    box: in that scan.
    shape: voxels of the cube, [x, y, z].

  Returns:
    uint8 `shape` [x, y, z], 0 or 1; 0 beyond the scan.
  """
  taken = _take(mask, box, False)
  # The voxel that the centre of each sample lies in.
  index = [
    (2 * np.arange(target) + 1) * source // (2 * target)
    for source, target in zip(box.size, shape, strict=True)
  ]
  return taken[np.ix_(*index)].astype(np.uint8)


def touches(mask: np.ndarray, box: Box) -> bool:
  """Returns whether any voxel of a mask, bool [x, y, z], lies in a box.

  What `cut_mask` resamples may lose it.
  """
  return bool(_take(mask, box, False).any())


def ball_mask(
  geometry: geometry_lib.Geometry,
  box: Box,
  shape: Sequence[int],
  centres: np.ndarray,
  diameters: np.ndarray,
) -> np.ndarray:
  """Draws balls into the mask of a cube.

  Args:
    geometry: of the scan.
    box: in that scan.
    shape: voxels of the cube, [x, y, z].
    centres: (n, 3), world mm.
    diameters: (n,), mm.

  Returns:
    uint8 `shape` [x, y, z], 1 where the middle of a voxel of the cube lies in
    a ball; each centre in the box marks one voxel at least.
  """
  step = np.divide(box.size, shape)
  lines = [
    np.arange(side) * one + (one - 1) / 2 + low
    for side, one, low in zip(shape, step, box.origin, strict=True)
  ]
  points = geometry.voxel_to_world(
    np.stack(np.meshgrid(*lines, indexing='ij'), axis=-1)
  )
  mask = np.zeros(tuple(shape), np.uint8)
  for centre, diameter in zip(centres, diameters, strict=True):
    squared = ((points - centre) ** 2).sum(-1)
    mask[squared <= (diameter / 2) ** 2] = 1
    voxel = geometry.world_to_voxel(centre) - box.origin
    nearest = np.floor((voxel + 0.5) / step).astype(int)
    if np.all(nearest >= 0) and np.all(nearest < shape):
      mask[tuple(nearest)] = 1
  return mask


def _take(volume: np.ndarray, box: Box, fill) -> np.ndarray:
  """Returns a copy of a box, filled where it reaches beyond the volume."""
  taken = np.full(box.size, fill, volume.dtype)
  inside, source = [], []
  for low, size, side in zip(box.origin, box.size, volume.shape, strict=True):
    start, stop = min(max(low, 0), side), max(min(low + size, side), 0)
    if stop <= start:
      return taken
    source.append(slice(start, stop))
    inside.append(slice(start - low, stop - low))
  taken[tuple(inside)] = volume[tuple(source)]
  return taken
