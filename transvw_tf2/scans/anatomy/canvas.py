"""Draws shapes in millimetres into a volume of HU with soft edges."""

from collections.abc import Iterator
import dataclasses

import numpy as np
from scipy import interpolate


@dataclasses.dataclass(frozen=True)
class Region:
  """Some voxels of a canvas: a box, or n scattered voxels.

  Attributes:
    index: of the voxels in the canvas's arrays [z, y, x]: three slices of a
      box, or three arrays (n,).
    x, y, z: float32 mm, of shapes (1, 1, X), (1, Y, 1) and (Z, 1, 1) for a
      box, else (n,).
  """

  index: tuple
  x: np.ndarray
  y: np.ndarray
  z: np.ndarray


class Canvas:
  """A volume of HU about the origin.

  A shape is given by its level: mm to its surface, positive inside. Edges are
  one voxel wide, so that a surface lies where it was drawn and not on the
  nearest voxel.

  Attributes:
    spacing: mm between voxels, the same along all axes.
    half: mm from the origin to the last voxel along x, y and z.
    hu: float32 [z, y, x], air at first.
    whole: the region of all voxels.
  """

  def __init__(self, half, spacing: float):
    steps = np.ceil(np.asarray(half) / spacing)
    self.spacing = float(spacing)
    self.half = steps * spacing
    axes = [
      (np.arange(-count, count + 1) * spacing).astype(np.float32)
      for count in steps
    ]
    self._axes = axes
    self.hu = np.full([len(axis) for axis in axes[::-1]], -1000.0, np.float32)
    self.whole = self.region(-self.half, self.half)

  def region(self, low, high) -> Region | None:
    """Returns the box between two corners (x, y, z) in mm, None if empty."""
    x, y, z = (
      slice(
        int(np.searchsorted(axis, start - 1e-3)),
        int(np.searchsorted(axis, stop + 1e-3)),
      )
      for axis, start, stop in zip(self._axes, low, high, strict=True)
    )
    if any(one.stop <= one.start for one in (x, y, z)):
      return None
    return Region(
      index=(z, y, x),
      x=self._axes[0][x].reshape(1, 1, -1),
      y=self._axes[1][y].reshape(1, -1, 1),
      z=self._axes[2][z].reshape(-1, 1, 1),
    )

  def where(self, mask: np.ndarray) -> Region:
    """Returns the voxels where a mask [z, y, x] holds."""
    index = np.nonzero(mask)
    z, y, x = (
      axis[one] for axis, one in zip(self._axes[::-1], index, strict=True)
    )
    return Region(index, x, y, z)

  def paint(
    self,
    level,
    value,
    region: Region | None = None,
    *,
    only_raise: bool = False,
  ) -> None:
    """Paints HU where a level is positive.

    Args:
      level: mm, positive inside, broadcast over the region.
      value: HU, broadcast over the region.
      region: where; everywhere if None.
      only_raise: leave voxels that would become darker.
    """
    index = (region or self.whole).index
    part = self.hu[index]
    share = np.clip(level / self.spacing + 0.5, 0.0, 1.0)
    painted = part + share * (value - part)
    self.hu[index] = np.maximum(part, painted) if only_raise else painted

  def draw(self, shape, value: float) -> None:
    """Paints an `Ellipsoid` or a `Tube` with one HU."""
    for region, level in shape.levels(self, margin=self.spacing):
      self.paint(level, value, region)


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
  """An ellipsoid along the axes: centre and radii (x, y, z) in mm."""

  centre: tuple[float, float, float]
  radii: tuple[float, float, float]

  def levels(self, canvas: Canvas, margin: float) -> Iterator:
    """Gives (region, level mm) of the voxels within `margin` mm of it."""
    centre, radii = np.asarray(self.centre), np.asarray(self.radii)
    region = canvas.region(centre - radii - margin, centre + radii + margin)
    if region is None:
      return
    offsets = [
      one - np.float32(middle)
      for one, middle in zip(
        (region.x, region.y, region.z), centre, strict=True
      )
    ]
    squared = sum(
      (one / np.float32(radius)) ** 2
      for one, radius in zip(offsets, radii, strict=True)
    )
    yield region, radial_level(np.sqrt(squared), *offsets)


@dataclasses.dataclass(frozen=True)
class Tube:
  """A round tube along a chain of points (n, 3) with radii (n,), in mm."""

  points: np.ndarray
  radii: np.ndarray

  def levels(self, canvas: Canvas, margin: float) -> Iterator:
    """Gives (region, level mm) about each piece, within `margin` mm of it."""
    radii = np.broadcast_to(self.radii, len(self.points))
    for piece in zip(
      self.points[:-1], self.points[1:], radii[:-1], radii[1:], strict=True
    ):
      start, end, *_ = piece
      reach = max(piece[2:]) + margin
      region = canvas.region(
        np.minimum(start, end) - reach, np.maximum(start, end) + reach
      )
      if region is not None:
        yield region, _piece_level(region, *piece)


def smooth_tube(points, radii, pieces: int = 4) -> Tube:
  """Returns a tube through points with radii, rounded by a cubic spline."""
  points = np.asarray(points, float)
  radii = np.broadcast_to(np.asarray(radii, float), len(points))
  places = np.arange(len(points))
  fine = np.linspace(0, len(points) - 1, pieces * (len(points) - 1) + 1)
  return Tube(
    interpolate.CubicSpline(places, points, bc_type='natural')(fine),
    np.interp(fine, places, radii),
  )


def radial_level(ratio, *offsets) -> np.ndarray:
  """Returns mm to a surface along the ray from its centre.

  Args:
    ratio: distance from the centre over that of the surface; 1 on the surface.
    *offsets: mm from the centre, one per axis.
  """
  # The centre itself lies inside by a distance that does not matter.
  ratio = np.maximum(ratio, np.float32(1e-3))
  return np.sqrt(sum(one**2 for one in offsets)) * (1.0 / ratio - 1.0)


def _piece_level(region, start, end, first, last) -> np.ndarray:
  along = end - start
  length = float(along @ along)
  offsets = [
    one - np.float32(a)
    for one, a in zip((region.x, region.y, region.z), start, strict=True)
  ]
  share = sum(
    np.float32(a) * one for a, one in zip(along, offsets, strict=True)
  )
  share = np.clip(share / np.float32(max(length, 1e-6)), 0.0, 1.0)
  squared = sum(
    (one - share * np.float32(a)) ** 2
    for one, a in zip(offsets, along, strict=True)
  )
  return np.float32(first) + share * np.float32(last - first) - np.sqrt(squared)
