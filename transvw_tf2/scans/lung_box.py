"""Finds the box around both lungs of a scan, without any trained model."""

import dataclasses

import numpy as np
from scipy import ndimage

# Everything below happens on means over blocks of about this side.
_BLOCK_MM = 4.0
# HU of a block of lung: above that of the air around the patient, in the
# windpipe, the stomach and the bowel, and below that of half a block of tissue.
_LUNG_HU = (-960.0, -500.0)
_CLIP_HU = (-1024, 1000)
# Each lung holds litres; less is no lung, or too little of one.
_LEAST_LITRES = 0.3
# The smaller lung holds at least this share of the larger one.
_LEAST_SHARE = 0.15
# A lung lies inside the body; not all of it does where the scan ends.
_LEAST_INSIDE = 0.5
# Share of the lungs' volume that is left out at each side of the box: the thin
# rims of the lungs differ most, and are the hardest to find.
_TAIL = 0.02
# The scan cuts the lungs where it ends in more than this share of their largest
# cross-section: a rim that is missing hardly moves the box.
_CUT_SHARE = 0.5

_CROSS = ndimage.generate_binary_structure(3, 1)
_IN_PLANE = _CROSS.copy()
_IN_PLANE[..., [0, 2]] = False


@dataclasses.dataclass(frozen=True)
class LungBox:
  """Where the lungs of a scan lie; voxel i reaches from i to i + 1.

  Along each axis the box holds the middle 96 % of the lungs' volume.

  Attributes:
    low: lower corner, voxels [x, y, z].
    high: upper corner, voxels [x, y, z].
    low_cut: whether the scan ends within the lungs at the lower side [x, y, z].
    high_cut: the same at the upper side.
  """

  low: tuple[float, float, float]
  high: tuple[float, float, float]
  low_cut: tuple[bool, bool, bool] = (False, False, False)
  high_cut: tuple[bool, bool, bool] = (False, False, False)


def find(hu: np.ndarray, spacing) -> LungBox | None:
  """Finds the lungs.

  Args:
    hu: int16 [x, y, z], HU, the whole scan, x and y across the patient.
    spacing: mm [x, y, z].

  Returns:
    None where there are none, or where the scan cuts them at both sides.
  """
  factors = [max(1, round(_BLOCK_MM / one)) for one in spacing]
  factors = [min(pair) for pair in zip(factors, hu.shape, strict=True)]
  sides = np.multiply(factors, spacing)  # mm
  lungs = segment(block_means(hu, factors), sides)
  if lungs is None:
    return None
  low, high, low_cut, high_cut = [], [], [], []
  for axis, factor in enumerate(factors):
    others = tuple(one for one in range(3) if one != axis)
    profile = np.count_nonzero(lungs, axis=others)
    share = np.concatenate([[0.0], np.cumsum(profile) / profile.sum()])
    first, last = np.interp([_TAIL, 1.0 - _TAIL], share, np.arange(len(share)))
    low.append(float(first * factor))
    high.append(float(last * factor))
    low_cut.append(bool(profile[0] > _CUT_SHARE * profile.max()))
    high_cut.append(bool(profile[-1] > _CUT_SHARE * profile.max()))
    if low_cut[-1] and high_cut[-1]:
      return None
  return LungBox(tuple(low), tuple(high), tuple(low_cut), tuple(high_cut))


def segment(means: np.ndarray, spacing) -> np.ndarray | None:
  """Finds the voxels of the lungs; None where there are none.

  Args:
    means: float32 [x, y, z], HU, a scan with voxels of about 4 mm.
    spacing: mm [x, y, z].

  Returns:
    bool [x, y, z].
  """
  airy = (means > _LUNG_HU[0]) & (means < _LUNG_HU[1])
  # Where air meets tissue a block is a little of both: a sheet of one block,
  # around the patient as around the windpipe.
  cores, count = ndimage.label(ndimage.binary_opening(airy, _CROSS), _CROSS)
  if not count:
    return None
  inside = fill_body(means)
  volumes = np.bincount(cores.ravel(), minlength=count + 1)[1:]
  within = np.bincount(cores[inside], minlength=count + 1)[1:]
  volumes = np.where(within >= _LEAST_INSIDE * volumes, volumes, 0)
  kept = 1 + np.flatnonzero(volumes >= max(1, _LEAST_SHARE * volumes.max()))
  lungs = np.isin(cores, kept)
  # Back to the thin edges that the opening took.
  lungs = ndimage.binary_dilation(lungs, _CROSS, iterations=2, mask=airy)
  litres = np.count_nonzero(lungs) * np.prod(spacing) / 1e6
  return lungs if litres >= _LEAST_LITRES else None


def fill_body(means: np.ndarray) -> np.ndarray:
  """Finds the patient, with all that lies inside, slice by slice.

  Args:
    means: float32 [x, y, z], HU, a scan with voxels of about 4 mm.

  Returns:
    bool [x, y, z], without the table.
  """
  tissue = ndimage.binary_opening(means > _LUNG_HU[1], _CROSS)
  labels, count = ndimage.label(tissue, _CROSS)
  if not count:
    return tissue
  body = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
  # Where the field of view cuts the chest, its edge closes it.
  for axis in (0, 1):
    for end in (0, -1):
      face = np.moveaxis(body, axis, 0)[end]
      before = np.maximum.accumulate(face, axis=0)
      after = np.maximum.accumulate(face[::-1], axis=0)[::-1]
      face |= before & after
  around, _ = ndimage.label(~body, _IN_PLANE)
  faces = (around[0], around[-1], around[:, 0], around[:, -1])
  outside = np.unique(np.concatenate([face.ravel() for face in faces]))
  return ~np.isin(around, outside[outside > 0])


def block_means(hu: np.ndarray, factors) -> np.ndarray:
  """Returns float32 means over blocks of voxels; what is left over is lost."""
  counts = [side // one for side, one in zip(hu.shape, factors, strict=True)]
  (x, y, z), (nx, ny, nz) = factors, counts
  means = np.empty(counts, np.float32)
  # One slab after the other: the scan is never held as wider integers.
  for index in range(nx):
    slab = np.clip(hu[index * x : (index + 1) * x, : ny * y], *_CLIP_HU)
    plane = slab.sum(axis=0, dtype=np.int32)
    plane = plane.reshape(ny, y, -1).sum(axis=1)[:, : nz * z]
    means[index] = plane.reshape(ny, nz, z).sum(axis=2)
  return means / np.float32(x * y * z)
