"""Scans in one image file: MetaImage, NIfTI and NRRD, through SimpleITK."""

import re

import numpy as np
import SimpleITK as sitk

from transvw_tf2.scans import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import headers
from transvw_tf2.scans import voxel_data

SUFFIXES = ('.mhd', '.mha', '.nii', '.nii.gz', '.nrrd', '.nhdr')


class ImageFile:
  """A scan in a file; made from its header alone.

  Attributes:
    geometry: as stored.
  """

  def __init__(self, path: str):
    """Reads the header and checks it against the size of the file.

    Raises:
      ScanError: it is broken, not three-dimensional, or promises more than
        there is.
      OSError: the file cannot be opened.
    """
    self._path = path
    self._data = headers.locate(path)
    header = read_header(path)
    self._size = header.GetSize()
    self._voxel_bytes = voxel_bytes(header)
    voxel_data.check_stored(self._data, self._size, self._voxel_bytes)
    self.geometry = geometry_of(header)

  def read_voxels(self) -> np.ndarray:
    """Returns numbers [x, y, z], in the axes of the file.

    A view, to be used no longer than this object lives.

    Raises:
      ScanError: the voxels are cut short or damaged.
    """
    voxel_data.check_deflated(self._data, self._size, self._voxel_bytes)
    voxel_data.check_finite(self._data, self._size)
    try:
      self._image = sitk.ReadImage(self._path)
    except errors.ITK_ERRORS as error:
      raise errors.unreadable(self._path, error) from error
    return array_view(self._image)


def read_header(path: str) -> sitk.ImageFileReader:
  """Reads the header of a file that holds one number per voxel in 3D.

  Raises:
    ScanError: it cannot be read or holds something else.
  """
  header = sitk.ImageFileReader()
  try:
    header.SetFileName(path)
    header.ReadImageInformation()
  except errors.ITK_ERRORS as error:
    raise errors.unreadable(path, error) from error
  size, kind = header.GetSize(), _kind(header)
  # Some programs write a fourth axis of length 1.
  if (
    len(size) < 3
    or max(size[3:], default=1) > 1
    or not re.match(r'\d+-bit', kind)
  ):
    raise errors.ScanError(
      'not_3d',
      f'{path} has size {size} of {kind} voxels; one three-dimensional image'
      ' of one number per voxel is wanted',
    )
  return header


def voxel_bytes(header: sitk.ImageFileReader) -> int:
  """Returns the bytes that a voxel of the image will take in memory."""
  return int(_kind(header).partition('-')[0]) // 8


def geometry_of(header: sitk.ImageFileReader) -> geometry_lib.Geometry:
  """Returns the geometry of the first three axes."""
  dimension = header.GetDimension()
  direction = np.reshape(header.GetDirection(), (dimension, dimension))
  return geometry_lib.Geometry(
    size=header.GetSize()[:3],
    spacing=header.GetSpacing()[:3],
    origin=header.GetOrigin()[:3],
    direction=tuple(float(one) for one in direction[:3, :3].ravel()),
  )


def array_view(image: sitk.Image) -> np.ndarray:
  """Returns a view [x, y, z] of the voxels; it dies with the image."""
  array = sitk.GetArrayViewFromImage(image)
  return array.reshape(array.shape[-3:]).T


def _kind(header: sitk.ImageFileReader) -> str:
  """Returns such as `16-bit signed integer` or `vector of 32-bit float`."""
  return sitk.GetPixelIDValueAsString(header.GetPixelIDValue())
