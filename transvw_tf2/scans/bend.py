"""Smooth transforms that bend one anatomy into many patients.

A transform maps world mm of a patient's scan to mm of what it was bent from:
the template anatomy, or the world of a real scan. First a cubic B-spline moves
a place, then an affine map scales, turns and shifts it; in ITK's terms a
composite of a BSplineTransform and an AffineTransform, and so it is stored.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np
from scipy import interpolate
from scipy import ndimage
from scipy.spatial import transform as rotations
import SimpleITK as sitk

from transvw_tf2 import errors
from transvw_tf2.scans import geometry as geometry_lib

_ORDER = 3
# Least mm between the control points of the spline.
_KNOT_SPACING = 80.0
# A cubic B-spline in 3-D whose coefficients stay below spacing / 2.48 never
# folds (Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic
# B-spline functions, Graphical Models 62, 2000).
_LARGEST_COEFFICIENT = 1 / 2.48
# sd of the spline over that of its coefficients: the squared cubic B-spline
# sums to 151/315, averaged over places, along each axis.
_SPLINE_SD = (151 / 315) ** 1.5
# Beyond it, keeping the coefficients from folding would eat up the sd.
_LARGEST_DISPLACEMENT_SD = 6.0


@dataclasses.dataclass(frozen=True, eq=False)
class Bend:
  """A smooth one-to-one map, p -> matrix @ (p + spline(p)) + offset, in mm.

  Attributes:
    corner: (3,) where the domain of the spline starts; the patient's scan lies
      inside the domain, and outside it the spline keeps its value at the edge.
    spacing: (3,) mm between the control points.
    coefficients: (nx, ny, nz, 3) mm; the first control point lies one spacing
      before the corner.
    matrix: (3, 3).
    offset: (3,) mm.
  """

  corner: np.ndarray
  spacing: np.ndarray
  coefficients: np.ndarray
  matrix: np.ndarray
  offset: np.ndarray

  def displacement(self, points) -> np.ndarray:
    """Returns the spline at world mm (..., 3): float64 mm (..., 3)."""
    points = np.asarray(points, np.float64)
    knots = self._knots(points.reshape(-1, 3).T)
    moved = [
      ndimage.map_coordinates(
        self.coefficients[..., axis], knots, order=_ORDER, prefilter=False
      )
      for axis in range(3)
    ]
    return np.stack(moved, axis=-1).reshape(points.shape)

  def apply(self, points) -> np.ndarray:
    """Maps world mm (..., 3) to float64 mm (..., 3) of the original."""
    moved = np.asarray(points, np.float64) + self.displacement(points)
    return moved @ self.matrix.T + self.offset

  def invert(self, places) -> np.ndarray:
    """Maps mm (..., 3) of the original to float64 world mm (..., 3).

    Solved to 1e-6 mm by damped fixed-point iteration, which converges since
    the spline is smooth: its derivatives stay well below 1.
    """
    goal = np.asarray(places, np.float64) - self.offset
    goal = goal @ np.linalg.inv(self.matrix).T
    points = goal
    for _ in range(200):
      error = goal - self.displacement(points) - points
      points = points + 0.75 * error
      if np.abs(error).max(initial=0.0) < 1e-6:
        break
    return points

  def slabs(
    self,
    geometry: geometry_lib.Geometry,
    original: geometry_lib.Geometry,
    slices: int = 8,
  ) -> Iterator[tuple[slice, np.ndarray]]:
    """Maps all voxels of a scan to voxels of the original.

    The spline of a whole slab is a product of three small matrices, and the
    affine map goes into its coefficients, since cubic B-splines hold linear
    functions exactly: thousands of times less work than point by point.

    Args:
      geometry: of the patient's scan, along the world's axes.
      original: geometry of the template or of the real scan.
      slices: of a slab.

    Yields:
      Slices of the scan and the continuous voxels of the original, float32
      [3, z, y, x], in the order z, y, x.
    """
    control = np.stack(
      np.meshgrid(
        *(
          corner + spacing * (np.arange(count) - 1)
          for corner, spacing, count in zip(
            self.corner, self.spacing, self.coefficients.shape, strict=False
          )
        ),
        indexing='ij',
      ),
      axis=-1,
    )
    places = (control + self.coefficients) @ self.matrix.T + self.offset
    voxels = original.world_to_voxel(places)
    along = [
      geometry.origin[axis] + geometry.spacing[axis] * np.arange(side)
      for axis, side in enumerate(geometry.size)
    ]
    in_x, in_y, in_z = (
      _spline_matrix(knots, count)
      for knots, count in zip(
        self._knots(along), self.coefficients.shape, strict=False
      )
    )
    # [axis z y x of the original, control z, y, x of the scan]
    planes = np.einsum(
      'ijkc,xi,yj->ckyx', voxels[..., ::-1], in_x, in_y, optimize=True
    ).astype(np.float32)
    in_z = in_z.astype(np.float32)
    for start in range(0, geometry.size[2], slices):
      slab = slice(start, min(start + slices, geometry.size[2]))
      yield slab, np.tensordot(in_z[slab], planes, (1, 1)).swapaxes(0, 1)

  def _knots(self, points):
    """Maps mm, one array per axis, to indices of the control points."""
    return [
      np.clip((one - corner) / spacing + 1, 1, count - 2)
      for one, corner, spacing, count in zip(
        points,
        self.corner,
        self.spacing,
        self.coefficients.shape,
        strict=False,
      )
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
  """Where the anatomy of a scan truly lies.

  Attributes:
    geometry: of the scan.
    bend: maps world mm of the scan to mm of the original.
  """

  geometry: geometry_lib.Geometry
  bend: Bend

  def template_coordinates(self, voxels) -> np.ndarray:
    """Maps voxels (..., 3) to the true place in the original, mm (..., 3).

    The original is the template, or the world of the real scan that was bent.
    """
    return self.bend.apply(self.geometry.voxel_to_world(voxels))

  def scan_voxels(self, places) -> np.ndarray:
    """Maps places (..., 3) of the original, mm, to continuous voxels."""
    return self.geometry.world_to_voxel(self.bend.invert(places))

  def in_scan(self, points) -> np.ndarray:
    """Tells which world mm (..., 3) lie between voxels of the scan."""
    voxels = self.geometry.world_to_voxel(points)
    last = np.array(self.geometry.size) - 1
    return ((voxels >= 0) & (voxels <= last)).all(-1)


def draw(
  rng: np.random.Generator,
  geometry: geometry_lib.Geometry,
  centre,
  *,
  translation_sd: float,
  rotation_sd: float,
  scale: tuple[float, float],
  displacement_sd: float,
) -> Bend:
  """Draws a transform; it depends on the box of the scan, not on its voxels.

  Args:
    rng: where the random numbers come from.
    geometry: of the patient's scan, along the world's axes.
    centre: (3,) mm of the original that comes to lie at the middle of the scan.
    translation_sd: sd of the shift of the patient, mm per axis.
    rotation_sd: sd of the angles about the three axes, degrees.
    scale: range of the size of the patient over that of the original, per axis.
    displacement_sd: sd of the spline, mm per axis, at most 6.

  Raises:
    errors.UserError: the displacement is too large to be one-to-one.
  """
  check_displacement_sd(displacement_sd)
  extent = np.multiply(geometry.size, geometry.spacing)
  corner = np.asarray(geometry.origin) - np.asarray(geometry.spacing) / 2
  intervals = np.maximum(1, np.round(extent // _KNOT_SPACING)).astype(int)
  spacing = extent / intervals
  coefficients = rng.normal(size=(*(intervals + _ORDER), 3))
  limit = _LARGEST_COEFFICIENT * spacing
  coefficients = np.clip(
    coefficients * (displacement_sd / _SPLINE_SD), -limit, limit
  )
  angles = rng.normal(size=3) * rotation_sd
  turn = rotations.Rotation.from_euler('xyz', angles, degrees=True).as_matrix()
  matrix = np.diag(1 / rng.uniform(*scale, size=3)) @ turn
  shift = rng.normal(size=3) * translation_sd
  return Bend(
    corner=corner,
    spacing=spacing,
    coefficients=coefficients,
    matrix=matrix,
    offset=np.asarray(centre) - matrix @ (corner + extent / 2 + shift),
  )


def check_displacement_sd(displacement_sd: float) -> None:
  """Raises errors.UserError where a transform could not be one-to-one."""
  if displacement_sd > _LARGEST_DISPLACEMENT_SD:
    raise errors.UserError(
      f'displacement_sd is {displacement_sd} mm; at most'
      f' {_LARGEST_DISPLACEMENT_SD} mm keeps the transform one-to-one'
    )


def to_itk(bend: Bend) -> sitk.CompositeTransform:
  """Returns the same map as an ITK transform (to within the spline's domain).

  ITK leaves places outside the domain where they are, but for the affine map.
  """
  spline = sitk.BSplineTransform(3, _ORDER)
  mesh = np.array(bend.coefficients.shape[:3]) - _ORDER
  spline.SetTransformDomainOrigin(bend.corner.tolist())
  spline.SetTransformDomainMeshSize(mesh.tolist())
  spline.SetTransformDomainPhysicalDimensions((bend.spacing * mesh).tolist())
  # All of x before y before z; within each, x runs fastest.
  spline.SetParameters(bend.coefficients.transpose(3, 2, 1, 0).ravel().tolist())
  affine = sitk.AffineTransform(3)
  affine.SetMatrix(bend.matrix.ravel().tolist())
  affine.SetTranslation(bend.offset.tolist())
  # The last of a composite is applied first.
  return sitk.CompositeTransform([affine, spline])


def write(path: str, bend: Bend) -> None:
  """Writes an ITK transform file (.tfm)."""
  sitk.WriteTransform(to_itk(bend), path)


def read(path: str) -> Bend:
  """Reads what `write` wrote.

  Raises:
    errors.UserError: the file is no such transform.
  """
  try:
    composite = sitk.CompositeTransform(sitk.ReadTransform(path))
    affine = sitk.AffineTransform(composite.GetNthTransform(0))
    spline = sitk.BSplineTransform(composite.GetNthTransform(1))
  except RuntimeError as error:
    raise errors.UserError(
      f'{path} is not the transform of a bent patient: a B-spline followed by'
      ' an affine map, written with the scans'
    ) from error
  mesh = np.array(spline.GetTransformDomainMeshSize())
  coefficients = np.reshape(spline.GetParameters(), (3, *(mesh + _ORDER)[::-1]))
  # Without a centre of rotation, ITK's translation is the whole offset.
  return Bend(
    corner=np.array(spline.GetTransformDomainOrigin()),
    spacing=np.array(spline.GetTransformDomainPhysicalDimensions()) / mesh,
    coefficients=np.ascontiguousarray(coefficients.transpose(3, 2, 1, 0)),
    matrix=np.reshape(affine.GetMatrix(), (3, 3)),
    offset=np.array(affine.GetTranslation()),
  )


def _spline_matrix(knots, count: int) -> np.ndarray:
  """Returns the weights (n, count) of control points at indices (n,)."""
  places = np.arange(-2.0, count + 2.0)
  return interpolate.BSpline.design_matrix(knots, places, _ORDER).toarray()
