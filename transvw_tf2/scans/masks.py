"""Reads masks of scans, and checks that they lie where their scan does."""

from collections.abc import Sequence
import os

import numpy as np

from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage

# Left and right lung in the masks of LUNA16; 5 is the trachea.
LUNGS = (3, 4)
MISSING = 'missing_mask'
# Headers of one scan that were written by different programs differ by so
# much: share of the spacing, of a voxel, and of a direction cosine.
_TOLERANCE = {'spacing': 1e-3, 'origin': 0.1, 'direction': 1e-3}
_HIGHEST_VALUE = 255


def find_mask(folder: str, scan_id: str) -> str | None:
  """Returns the file {scan_id}.mhd, .nii.gz, ... of a folder, or None."""
  for suffix in reader.SCAN_SUFFIXES:
    path = os.path.join(folder, scan_id + suffix)
    if storage.is_file(path):
      return path
  return None


def read_mask(
  path: str,
  geometry: geometry_lib.Geometry,
  values: Sequence[int] | None = None,
) -> np.ndarray:
  """Reads the mask of a scan.

  Args:
    path: what `reader.read_scan` takes.
    geometry: of the scan.
    values: that count as the mask; None takes all above 0.

  Returns:
    bool [x, y, z], as the scan is indexed.

  Raises:
    reader.ScanError: the mask cannot be read, has another geometry than the
      scan, or values that no mask has.
  """
  if not storage.exists(path):
    raise reader.ScanError(MISSING, f'{path} does not exist')
  try:
    with storage.staged(path) as local:
      # From the header alone: a mask that does not fit is not worth reading.
      check_geometry(local, reader.read_geometry(local), geometry)
      found = reader.read_scan(local, check=False).hu
  except reader.ScanError as error:
    if error.reason.startswith('mask_'):
      raise
    raise reader.ScanError(f'mask_{error.reason}', error.detail) from error
  low, high = int(found.min()), int(found.max())
  if low < 0 or high > _HIGHEST_VALUE:
    raise reader.ScanError(
      'mask_values',
      f'{path} has values {low} to {high}; a mask has 0 to {_HIGHEST_VALUE}',
    )
  return found > 0 if values is None else np.isin(found, values)


def check_geometry(
  path: str, found: geometry_lib.Geometry, wanted: geometry_lib.Geometry
) -> None:
  """Raises ScanError unless a mask has the geometry of its scan."""
  scale = {
    'spacing': np.array(wanted.spacing),
    'origin': min(wanted.spacing),
    'direction': 1.0,
  }
  different = found.size != wanted.size and 'size'
  for name, tolerance in _TOLERANCE.items():
    off = np.subtract(getattr(found, name), getattr(wanted, name))
    if not different and np.any(np.abs(off) > tolerance * scale[name]):
      different = name
  if different:
    raise reader.ScanError(
      'mask_geometry',
      f'{path} has {different} {_text(getattr(found, different))}, its scan'
      f' {_text(getattr(wanted, different))}',
    )


def draw_voxels(
  mask: np.ndarray, number: int, rng: np.random.Generator, name: str
) -> np.ndarray:
  """Draws voxels of a mask, each as likely as the others.

  Args:
    mask: bool [x, y, z].
    number: of voxels, which may be drawn twice.
    rng: where the random numbers come from.
    name: of the mask, for messages.

  Returns:
    int64 (number, 3) voxels [x, y, z].

  Raises:
    reader.ScanError: the mask is empty.
  """
  # How many voxels lie before each plane of y and z: the places of all of
  # them would take as much memory as the scan.
  ends = np.cumsum(np.count_nonzero(mask, axis=(1, 2)))
  if not ends[-1]:
    raise reader.ScanError('mask_empty', f'{name} marks no voxel')
  drawn = []
  for rank in rng.integers(ends[-1], size=number):
    x = int(np.searchsorted(ends, rank, side='right'))
    within = rank - (ends[x - 1] if x else 0)
    y, z = np.unravel_index(np.flatnonzero(mask[x])[within], mask.shape[1:])
    drawn.append((x, y, z))
  return np.array(drawn, np.int64).reshape(-1, 3)


def _text(values) -> str:
  return ' '.join(f'{one:g}' for one in values)
