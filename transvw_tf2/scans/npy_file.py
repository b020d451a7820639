"""Scans in a NumPy file: HU [x, y, z], spacing from a .json file beside it."""

import json
import os

from absl import logging
import numpy as np

from transvw_tf2.scans import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import mapped_array
from transvw_tf2.scans import voxel_data

SUFFIX = '.npy'


class NpyFile:
  """A scan in a .npy file; its voxels are memory-mapped.

  Attributes:
    geometry: spacing from `<name>.json`, `{"spacing": [x, y, z]}` in mm, else
      1 mm with a warning.
  """

  def __init__(self, path: str):
    """Maps the file.

    Raises:
      ScanError: it is broken or does not hold numbers [x, y, z].
    """
    self._array = _open(path)
    self.geometry = geometry_lib.Geometry(
      self._array.shape, _read_spacing(spacing_path(path))
    )

  def read_voxels(self) -> np.ndarray:
    """Returns numbers [x, y, z]."""
    return self._array


def spacing_path(path: str) -> str:
  """Returns the path of the spacing of a scan."""
  return os.path.splitext(path)[0] + '.json'


def _open(path: str) -> np.ndarray:
  try:
    array = mapped_array.open_array(path)
  except OSError:
    raise
  except Exception as error:
    shorter = 'greater than file size' in str(error)
    wrong = errors.unreadable(path, error)
    raise errors.ScanError(
      'truncated' if shorter else wrong.reason, wrong.detail
    ) from error
  if array.dtype.kind not in 'iuf':
    raise errors.ScanError(
      'unreadable', f'{path} holds {array.dtype}; integers or floats are wanted'
    )
  if array.ndim != 3:
    raise errors.ScanError(
      'not_3d', f'{path} has shape {array.shape}; [x, y, z] is wanted'
    )
  voxel_data.check_size(path, array.shape)
  return array


def _read_spacing(path: str) -> tuple[float, float, float]:
  if not os.path.exists(path):
    logging.warning('no %s: taking 1 mm spacing', path)
    return (1.0, 1.0, 1.0)
  try:
    with open(path, encoding='utf-8') as file:
      spacing = json.load(file)['spacing']
    if isinstance(spacing, list):
      x, y, z = (float(one) for one in spacing)
      return x, y, z
  except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
    pass
  raise errors.ScanError(
    'bad_geometry', f'{path} must hold {{"spacing": [x, y, z]}} in mm'
  )
