"""Reads and writes CT scans; the one place where the axis order is decided.

A scan in memory is int16 HU indexed [x, y, z]. It is flipped and permuted so
that x, y and z run nearest to left, posterior and superior (LPS); a remaining
rotation stays in the direction matrix, voxels are never resampled.
"""

import dataclasses
import math
import os
import tempfile

import numpy as np
import SimpleITK as sitk

from transvw_tf2 import schema
from transvw_tf2.scans import dicom_series
from transvw_tf2.scans import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import image_file
from transvw_tf2.scans import npy_file
from transvw_tf2.scans import storage

SCAN_SUFFIXES = (*image_file.SUFFIXES, npy_file.SUFFIX)

# What the functions below raise, by the name that callers know.
ScanError = errors.ScanError

# A CT scan of a chest shows air and tissue; a mask, an 8-bit picture or an
# MRI does not.
_AIR_HU = -200
_TISSUE_HU = -100

# 1 for axes at right angles, 0 for three axes in one plane.
_LEAST_DETERMINANT = 1e-3


@dataclasses.dataclass(frozen=True)
class Scan:
  """A CT scan: `hu` int16 [x, y, z], HU, and where its voxels lie."""

  hu: np.ndarray
  geometry: geometry_lib.Geometry


def read_scan(
  path: str, *, check: bool = True, cube_shape=schema.CUBE_SHAPE
) -> Scan:
  """Reads a scan.

  Args:
    path: MetaImage (.mhd, .mha), NIfTI, NRRD or .npy file, or a folder with
      one DICOM series; or the address of such, see `storage.staged`.
    check: require a CT scan that holds at least one cube; False for masks.
    cube_shape: of that cube, voxels [x, y, z].

  Raises:
    ScanError: the scan cannot be read or, with `check`, used.
    StorageError: an address cannot be read.
  """
  with storage.staged(os.fspath(path)) as local:
    return _read(local, check, cube_shape)


def _read(path: str, check: bool, cube_shape) -> Scan:
  try:
    source, reorientation, geometry = _open(path)
    if check:
      _check_holds_cube(path, geometry.size, cube_shape)
    hu = _to_int16(path, reorientation.of_array(source.read_voxels()))
  except OSError as error:
    raise errors.unreadable(path, error) from error
  if check:
    _check_ct_range(path, hu)
  return Scan(hu, geometry)


def read_geometry(path: str) -> geometry_lib.Geometry:
  """Reads the geometry that `read_scan` will return, from headers alone.

  Raises:
    ScanError: the header is missing, broken, not three-dimensional, or claims
      more than can be read or than the data file holds.
    StorageError: an address cannot be read.
  """
  with storage.staged(os.fspath(path)) as local:
    try:
      return _open(local)[2]
    except OSError as error:
      raise errors.unreadable(local, error) from error


def write_scan(
  path: str, hu: np.ndarray, geometry: geometry_lib.Geometry
) -> None:
  """Writes a scan; the file appears only when it is whole.

  Args:
    path: the suffix decides the format: any of `SCAN_SUFFIXES` but .npy. A
      .mhd gets a .raw file beside it, or a compressed .zraw where the array is
      uint8 (a mask).
    hu: integers [x, y, z].
    geometry: where the voxels lie.
  """
  image = sitk.GetImageFromArray(np.ascontiguousarray(hu.transpose(2, 1, 0)))
  image.SetSpacing(geometry.spacing)
  image.SetOrigin(geometry.origin)
  image.SetDirection(geometry.direction)
  folder, name = os.path.split(os.path.abspath(path))
  with tempfile.TemporaryDirectory(prefix='.', dir=folder) as temporary:
    compress = hu.dtype == np.uint8 and name.endswith('.mhd')
    sitk.WriteImage(image, os.path.join(temporary, name), compress)
    # The header last: a header without data is an error, data without a
    # header is not a scan.
    for part in sorted(os.listdir(temporary), key=name.__eq__):
      os.replace(os.path.join(temporary, part), os.path.join(folder, part))


def _open(path: str):
  """Opens a scan from its header.

  Returns:
    What reads its voxels, how to bring them to LPS, and the geometry then.
  """
  if not os.path.exists(path):
    raise ScanError('missing_file', f'{path} does not exist')
  if os.path.isdir(path):
    source = dicom_series.DicomSeries(path)
  elif not os.path.isfile(path):
    raise ScanError('unreadable', f'{path} is neither a file nor a folder')
  elif path.endswith(npy_file.SUFFIX):
    source = npy_file.NpyFile(path)
  elif path.endswith(image_file.SUFFIXES):
    source = image_file.ImageFile(path)
  else:
    raise ScanError(
      'unknown_format',
      f'{path} has none of the suffixes {", ".join(SCAN_SUFFIXES)}',
    )
  _check_geometry(path, source.geometry)
  reorientation = geometry_lib.nearest_lps(source.geometry)
  return source, reorientation, reorientation.of_geometry(source.geometry)


def _to_int16(path: str, array: np.ndarray) -> np.ndarray:
  """Rounds and clips numbers to int16, in C order, one plane at a time."""
  hu = np.empty(array.shape, np.int16)
  limits = np.iinfo(np.int16)
  low, high = limits.min, limits.max
  if array.dtype.kind in 'iu':
    own = np.iinfo(array.dtype)
    low, high = max(low, own.min), min(high, own.max)
  # Along y: image files run along x first and z last, so that a plane of x and
  # z is read and written in the longest runs.
  for y in range(array.shape[1]):
    plane = array[:, y]
    if array.dtype.kind == 'f':
      if not np.isfinite(plane).all():
        raise ScanError('not_finite', f'{path} holds NaN or infinite values')
      # Half a float does not hold the limits.
      plane = np.rint(plane, dtype=np.promote_types(plane.dtype, np.float32))
    hu[:, y] = np.clip(plane, low, high)
  return hu


def _check_geometry(path: str, geometry: geometry_lib.Geometry) -> None:
  if min(geometry.size) < 2:
    raise ScanError(
      'not_3d', f'{path} has {_by(geometry.size)} voxels; a volume is wanted'
    )
  if not all(math.isfinite(one) and one > 0 for one in geometry.spacing):
    raise ScanError(
      'bad_geometry',
      f'{path} has spacing {geometry.spacing} mm; it must be positive',
    )
  determinant = np.linalg.det(np.reshape(geometry.direction, (3, 3)))
  if (
    not all(map(math.isfinite, geometry.origin))
    or not abs(determinant) > _LEAST_DETERMINANT
  ):
    raise ScanError(
      'bad_geometry',
      f'{path} has origin {geometry.origin} and direction'
      f' {geometry.direction}, which do not place a volume',
    )


def _check_holds_cube(path: str, size, cube_shape) -> None:
  if any(side < cube for side, cube in zip(size, cube_shape, strict=True)):
    raise ScanError(
      'too_small',
      f'{path} has {_by(size)} voxels; at least {_by(cube_shape)} are needed',
    )


def _check_ct_range(path: str, hu: np.ndarray) -> None:
  low, high = int(hu.min()), int(hu.max())
  if low > _AIR_HU or high < _TISSUE_HU:
    raise ScanError(
      'not_ct_range',
      f'{path} has values {low} to {high}; a CT scan in HU shows air (about'
      ' -1000) and tissue (about 0)',
    )


def _by(size) -> str:
  return ' x '.join(map(str, size))
