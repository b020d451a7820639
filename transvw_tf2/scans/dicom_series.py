"""Scans in a folder that holds one DICOM series, through SimpleITK."""

import contextlib
import os

import numpy as np
import SimpleITK as sitk

from transvw_tf2.scans import dicom_elements
from transvw_tf2.scans import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import image_file
from transvw_tf2.scans import voxel_data

# A gap between two slices may differ from the usual one by this share of it.
_GAP_TOLERANCE = 0.1


class DicomSeries:
  """A scan in a DICOM folder; made from the headers of its slices.

  Attributes:
    geometry: as stored, with the slices in the order of their positions.
  """

  def __init__(self, folder: str):
    """Reads the headers, about 1 ms a slice.

    Raises:
      ScanError: not one series, slices that do not make a volume, or a DICOM
        file, of the series or not, that claims more than it holds.
    """
    self._folder = folder
    _check_files(folder)
    self._files = _find_slices(folder)
    headers = [image_file.read_header(path) for path in self._files]
    slices = [image_file.geometry_of(header) for header in headers]
    self.geometry = slices[0] if len(slices) == 1 else _stack(folder, slices)
    voxel_data.check_claim(
      folder,
      self.geometry.size,
      min(image_file.voxel_bytes(header) for header in headers),
      sum(os.path.getsize(path) for path in self._files),
    )

  def read_voxels(self) -> np.ndarray:
    """Returns HU [x, y, z]; SimpleITK applies RescaleSlope and -Intercept.

    A view, to be used no longer than this object lives.

    Raises:
      ScanError: a slice cannot be read.
    """
    try:
      self._image = sitk.ReadImage(
        self._files if len(self._files) > 1 else self._files[0]
      )
    except errors.ITK_ERRORS as error:
      raise errors.unreadable(self._folder, error) from error
    return image_file.array_view(self._image)


def _check_files(folder: str) -> None:
  """Checks all DICOM files of a folder before GDCM reads any of them."""
  with os.scandir(folder) as entries:
    paths = sorted(one.path for one in entries if one.is_file())
  for path in paths:
    # GDCM passes over a file that cannot be opened.
    with contextlib.suppress(OSError):
      dicom_elements.check(path)


def _find_slices(folder: str) -> tuple[str, ...]:
  """Returns the files of the one series, in the order of their positions."""
  try:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder)
    if len(series) == 1:
      return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, series[0])
  except errors.ITK_ERRORS as error:
    raise errors.unreadable(folder, error) from error
  raise errors.ScanError(
    'not_one_series',
    f'{folder} holds {len(series)} DICOM series; a folder of exactly one is'
    ' wanted',
  )


def _stack(
  folder: str, slices: list[geometry_lib.Geometry]
) -> geometry_lib.Geometry:
  """Returns the geometry of a stack of slices.

  They are stacked from position to position, which a tilted gantry makes differ
  from their normal (ITK's ForceOrthogonalDirection, switched off).

  Raises:
    ScanError: the slices differ, or are not evenly spaced: one is missing.
  """
  first, last = slices[0], slices[-1]
  if any(
    one.size != first.size
    or one.size[2] != 1
    or not np.allclose(one.spacing[:2], first.spacing[:2], atol=1e-3)
    or not np.allclose(one.direction, first.direction, atol=1e-3)
    for one in slices
  ):
    raise errors.ScanError(
      'mixed_slices',
      f'{folder} holds slices of different size, spacing or direction',
    )
  gaps = np.linalg.norm(np.diff([one.origin for one in slices], axis=0), axis=1)
  usual = np.median(gaps)
  if not np.all(np.abs(gaps - usual) < _GAP_TOLERANCE * usual):
    raise errors.ScanError(
      'uneven_slices',
      f'{folder} has slices {gaps.min():.3f} to {gaps.max():.3f} mm apart; one'
      ' is missing, broken or there twice',
    )
  along = np.subtract(last.origin, first.origin)
  # Gaps that differ little may add up.
  steps = np.arange(len(slices))[:, np.newaxis] / (len(slices) - 1)
  off = [one.origin for one in slices] - (first.origin + steps * along)
  if np.linalg.norm(off, axis=1).max() > usual / 2:
    raise errors.ScanError(
      'uneven_slices',
      f'{folder} has slices up to {np.linalg.norm(off, axis=1).max():.1f} mm'
      ' away from even places: their distance changes along the series',
    )
  length = float(np.linalg.norm(along))
  direction = np.reshape(first.direction, (3, 3)).copy()
  direction[:, 2] = along / length
  return geometry_lib.Geometry(
    size=(*first.size[:2], len(slices)),
    spacing=(*first.spacing[:2], length / (len(slices) - 1)),
    origin=first.origin,
    direction=tuple(float(one) for one in direction.ravel()),
  )
