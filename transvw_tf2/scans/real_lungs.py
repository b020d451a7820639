"""Finds the lungs of a real scan and the vessels in them, without a model.

Good enough to put nodules where they belong; no rival of a trained network.
"""

import itertools

import numpy as np
from scipy import ndimage
import SimpleITK as sitk

from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import lung_box
from transvw_tf2.scans import masks
from transvw_tf2.scans import nodules as nodule_lib

_BLOCK_MM = 4.0
# HU of lung, and of the vessels in it.
_HIGHEST_LUNG_HU = -400
_LOWEST_VESSEL_HU = -300
# Vessels up to about twice as wide belong to the lung around them, mm.
_CLOSING = 6.0
# mm from the outside of the lungs, and half the width of what is no vessel.
_VESSEL_DEPTH = 6.0
_VESSEL_RADIUS = 5.0
# The smaller lung has at least this share of the larger one.
_LEAST_SHARE = 0.15
_OTHER_AXES = ((1, 2), (0, 2), (0, 1))


def find(
  hu: np.ndarray, geometry: geometry_lib.Geometry
) -> nodule_lib.Lungs | None:
  """Finds both lungs; None where there are none.

  Args:
    hu: int16 [x, y, z], HU, the whole scan.
    geometry: of the scan.
  """
  factors = [max(1, round(_BLOCK_MM / one)) for one in geometry.spacing]
  factors = [min(pair) for pair in zip(factors, hu.shape, strict=True)]
  sides = np.multiply(factors, geometry.spacing)
  blocks = lung_box.segment(lung_box.block_means(hu, factors), sides)
  if blocks is None:
    return None
  index = np.ix_(
    *(
      np.minimum(np.arange(side) // factor, count - 1)
      for side, factor, count in zip(
        hu.shape, factors, blocks.shape, strict=True
      )
    )
  )
  near = ndimage.binary_dilation(blocks)[index]
  lungs = _close((hu < _HIGHEST_LUNG_HU) & near, geometry)
  sides = _label_sides(blocks, runs_left=geometry.direction[0] > 0)
  vessels = _find_vessels(lungs, hu, geometry)
  return nodule_lib.Lungs(
    mask=np.where(lungs, sides[index], 0).astype(np.uint8),
    geometry=geometry,
    vessels=geometry.voxel_to_world(np.argwhere(vessels)),
    box=_find_box(lungs, geometry),
  )


def _find_box(lungs, geometry) -> np.ndarray:
  """Returns the middle of a box around the lungs and half its sides, mm."""
  ends = [np.flatnonzero(lungs.any(others))[[0, -1]] for others in _OTHER_AXES]
  corners = geometry.voxel_to_world(list(itertools.product(*ends)))
  low, high = corners.min(axis=0), corners.max(axis=0)
  return np.array([(low + high) / 2, (high - low) / 2])


def _close(lungs, geometry) -> np.ndarray:
  """Takes what is thin, or enclosed in a slice, into the lungs."""
  radius = [round(_CLOSING / one) for one in geometry.spacing]
  image = sitk.GetImageFromArray(lungs.T.astype(np.uint8))
  image = sitk.BinaryMorphologicalClosing(image, radius[:2] + [0])
  closed = sitk.GetArrayFromImage(image).T.astype(bool)
  in_plane = np.zeros((3, 3, 3), bool)
  in_plane[:, 1, 1] = in_plane[1, :, 1] = True
  return ndimage.binary_fill_holes(closed, in_plane)


def _label_sides(blocks, runs_left: bool) -> np.ndarray:
  """Returns the lung that each place is nearest to, uint8 as `blocks`.

  Args:
    blocks: bool [x, y, z], both lungs.
    runs_left: whether x runs to the left of the patient.
  """
  left, right = masks.LUNGS if runs_left else masks.LUNGS[::-1]
  cores, count = ndimage.label(ndimage.binary_erosion(blocks))
  volumes = np.bincount(cores.ravel(), minlength=count + 1)
  volumes[0] = 0
  one, other = np.argsort(volumes)[-2:] if count > 1 else (0, 0)
  if not count or volumes[one] < _LEAST_SHARE * volumes[other]:
    # Both in one piece.
    inside = np.flatnonzero(blocks.any(axis=(1, 2)))
    is_left = np.arange(blocks.shape[0]) > (inside[0] + inside[-1]) / 2
    is_left = np.broadcast_to(is_left[:, None, None], blocks.shape)
    return np.where(is_left, left, right).astype(np.uint8)
  if (
    ndimage.center_of_mass(cores == one)[0]
    < ndimage.center_of_mass(cores == other)[0]
  ):
    one, other = other, one
  sides = np.zeros(blocks.shape, np.uint8)
  sides[cores == one], sides[cores == other] = left, right
  nearest = ndimage.distance_transform_edt(
    sides == 0, return_distances=False, return_indices=True
  )
  return sides[tuple(nearest)]


def _find_vessels(lungs, hu, geometry) -> np.ndarray:
  """Finds vessels deep in the lungs, bool [x, y, z]; a tumour is none."""
  depth = ndimage.distance_transform_edt(lungs, sampling=geometry.spacing)
  bright = lungs & (hu > _LOWEST_VESSEL_HU)
  radius = ndimage.distance_transform_edt(bright, sampling=geometry.spacing)
  wide = ndimage.distance_transform_edt(
    radius < _VESSEL_RADIUS, sampling=geometry.spacing
  )
  return bright & (depth > _VESSEL_DEPTH) & (wide > 2 * _VESSEL_RADIUS)
