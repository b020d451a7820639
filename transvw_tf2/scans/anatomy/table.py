"""Draws the table that a patient lies on in the scanner."""

import numpy as np

from transvw_tf2.scans import geometry as geometry_lib

# mm: radius of its hollow, air under the back, and its sides.
_CURVATURE = 500.0
_GAP = 7.0
_THICKNESS = 18.0
_WIDTH = 430.0
# mm of its shell around foam, and HU of both above that of air.
_SHELL = 2.5
_SHELL_HU = 850.0
_FOAM_HU = 80.0


def draw(geometry: geometry_lib.Geometry, back) -> np.ndarray:
  """Draws the table in a slice: float32 [y, x], HU above that of air.

  It is a part of the scanner: the same in all slices, straight, and a little
  below the patient, with whom it does not bend.

  Args:
    geometry: of the scan, along the world's axes.
    back: float64 (n, 3) world mm, places on the skin of the patient's back.
  """
  x, y = (
    geometry.origin[axis] + geometry.spacing[axis] * np.arange(side)
    for axis, side in enumerate(geometry.size[:2])
  )
  middle = x.mean()
  hollow = (back[:, 0] - middle) ** 2 / (2 * _CURVATURE)
  top = (back[:, 1] + hollow).max() + _GAP
  below = y[:, np.newaxis] - top + (x - middle) ** 2 / (2 * _CURVATURE)
  level = _THICKNESS / 2 - np.abs(below - _THICKNESS / 2)
  level = np.minimum(level, _WIDTH / 2 - np.abs(x - middle))
  edge = geometry.spacing[0]
  table = np.clip(level / edge + 0.5, 0.0, 1.0) * _SHELL_HU
  foam = np.clip((level - _SHELL) / edge + 0.5, 0.0, 1.0)
  table -= foam * (_SHELL_HU - _FOAM_HU)
  return table.astype(np.float32)
