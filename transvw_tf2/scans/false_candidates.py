"""Places in synthetic patients that resemble nodules and are none."""

import numpy as np
from scipy import ndimage
import SimpleITK as sitk

from transvw_tf2.scans import bend as bend_lib
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import nodules as nodule_lib

# In a patient.
_NUMBER = 6
# Of the filter that finds blobs: voxels, sd of its Gaussians (mm), least
# response (HU) and what is taken for one blob (mm). A patient then has some
# 620, as a scan has in LUNA16's first list (551,065 candidates in 888 scans).
_SPACING = 2.0
_SIGMAS = (1.5, 2.5, 4.0)
_RESPONSE = 300.0
_DISTANCE = 8.0


def draw_vessels(
  rng: np.random.Generator,
  truth: bend_lib.Truth,
  lungs: nodule_lib.Lungs,
  nodules,
) -> np.ndarray:
  """Draws vessels that could be taken for nodules: float64 (n, 3) world mm.

  They lie in the scan, and 10 mm or more from the nodules.
  """
  count = min(20 * _NUMBER, len(lungs.vessels))
  places = rng.choice(lungs.vessels, count, replace=False)
  points = truth.bend.invert(places)
  wanted = truth.in_scan(points) & _away_from(points, nodules)
  return points[wanted][:_NUMBER]


def detect_blobs(
  rng: np.random.Generator,
  hu: np.ndarray,
  mask: np.ndarray,
  geometry: geometry_lib.Geometry,
  nodules,
) -> np.ndarray:
  """Finds what a blob detector takes for nodules: float64 (n, 3) world mm.

  As systems for computer-aided detection do, it takes the places where the
  scale-normalised Laplacian of Gaussians (Lindeberg, IJCV 1998) is largest: in
  vessels where they branch or bend, and along pleura, hilum and diaphragm.

  Args:
    rng: chooses some of all.
    hu: int16 [z, y, x], the scan.
    mask: uint8 [z, y, x], above 0 in the lungs.
    geometry: of both, along the world's axes.
    nodules: 10 mm or more around them are left out.
  """
  image = sitk.Cast(
    sitk.Clamp(_to_image(hu, geometry), lowerBound=-1000, upperBound=100),
    sitk.sitkFloat32,
  )
  sides = np.multiply(geometry.size, geometry.spacing)
  coarse = sitk.Resample(
    image,
    [int(side) for side in sides // _SPACING],
    sitk.Transform(),
    sitk.sitkLinear,
    geometry.origin,
    [_SPACING] * 3,
  )
  lungs = sitk.Resample(
    _to_image(mask, geometry),
    coarse,
    sitk.Transform(),
    sitk.sitkNearestNeighbor,
  )
  lungs = ndimage.binary_dilation(sitk.GetArrayViewFromImage(lungs) > 0)
  response = np.max(
    [
      -sitk.GetArrayFromImage(
        sitk.LaplacianRecursiveGaussian(coarse, sigma, True)
      )
      for sigma in _SIGMAS
    ],
    axis=0,
  )
  response[~lungs] = 0.0
  width = 2 * int(_DISTANCE / _SPACING / 2) + 1
  peaks = response == ndimage.maximum_filter(response, width)
  found = np.argwhere(peaks & (response > _RESPONSE))[:, ::-1]
  points = found * _SPACING + geometry.origin
  points = points[_away_from(points, nodules)]
  return rng.permutation(points)[:_NUMBER]


def _to_image(array, geometry) -> sitk.Image:
  image = sitk.GetImageFromArray(array)
  image.SetSpacing([float(side) for side in geometry.spacing])
  image.SetOrigin([float(side) for side in geometry.origin])
  return image


def _away_from(points, nodules) -> np.ndarray:
  """Returns which points lie 10 mm or more from all nodules."""
  away = np.ones(len(points), bool)
  for nodule in nodules:
    distance = np.linalg.norm(points - nodule.centre, axis=-1)
    away &= distance > max(nodule.radii) + 10.0
  return away
