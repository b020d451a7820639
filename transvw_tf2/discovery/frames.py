"""Carries places from a reference to a patient, in one of two frames.

`voxel` is the published method: the same voxels in every scan, whatever the
position, size and spacing. In `lung` a place lies where it does in relation to
the lungs, and a cube has the same physical size in every patient.
"""

import dataclasses

import numpy as np

from transvw_tf2.scans import lung_box

VOXEL = 'voxel'
LUNG = 'lung'
FRAMES = (VOXEL, LUNG)


@dataclasses.dataclass(frozen=True)
class Carried:
  """A place in a patient's scan.

  Attributes:
    corner: float64 (3,), lower corner of the cube, voxels [x, y, z]; voxel i
      reaches from i to i + 1.
    scale: float64 (3,), voxels of the patient per voxel of the reference.
  """

  corner: np.ndarray
  scale: np.ndarray


def carry(
  centre,
  cube,
  reference_lungs: lung_box.LungBox,
  reference_spacing,
  lungs: lung_box.LungBox,
  spacing,
) -> Carried | None:
  """Carries the cube of a reference to a patient by their lungs.

  Along each axis the centre of the cube divides the box of the lungs in the
  same proportion. Where the scan of either cuts the lungs at one side, its
  distance (mm) to the other side is kept instead.

  Args:
    centre: of the cube in the reference, voxels [x, y, z].
    cube: its sides in the reference, voxels [x, y, z].
    reference_lungs: of the reference.
    reference_spacing: mm [x, y, z].
    lungs: of the patient.
    spacing: mm [x, y, z].

  Returns:
    The cube in the patient, or None where both sides of an axis are cut.
  """
  scale = np.divide(reference_spacing, spacing)
  carried = np.empty(3)
  for axis, place in enumerate(centre):
    low, high = reference_lungs.low[axis], reference_lungs.high[axis]
    to_low, to_high = lungs.low[axis], lungs.high[axis]
    low_cut = reference_lungs.low_cut[axis] or lungs.low_cut[axis]
    high_cut = reference_lungs.high_cut[axis] or lungs.high_cut[axis]
    if low_cut and high_cut:
      return None
    if low_cut:
      carried[axis] = to_high - (high - place) * scale[axis]
    elif high_cut:
      carried[axis] = to_low + (place - low) * scale[axis]
    else:
      share = (place - low) / (high - low)
      carried[axis] = to_low + share * (to_high - to_low)
  return Carried(carried - np.multiply(cube, scale) / 2, scale)
