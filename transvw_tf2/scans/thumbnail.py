"""Thumbnails: whole scans in few voxels, as the autoencoder sees them."""

from collections.abc import Sequence
import functools

import numpy as np
from scipy import ndimage

from transvw_tf2 import schema

# The size to which the paper resizes whole scans (section III-A), [x, y, z].
SHAPE = (128, 128, 64)


def make_thumbnail(hu: np.ndarray, shape: Sequence[int] = SHAPE) -> np.ndarray:
  """Returns a scan resized linearly with anti-aliasing.

  As scikit-image's `resize` of the clipped scan; rounding to whole HU costs at
  most 0.5 HU, 0.00025 of the scaled range. The filter and the interpolation are
  linear and act on one axis at a time, so each axis takes one small matrix.

  Args:
    hu: int16 [x, y, z], HU.
    shape: voxels of the thumbnail along x, y and z.

  Returns:
    int16 `shape` [x, y, z], HU in [-1000, 1000].
  """
  to_x, to_y, to_z = (
    resize_weights(*sides) for sides in zip(hu.shape, shape, strict=True)
  )
  # One plane of y and z after the other: the scan is never held as floats.
  planes = [
    to_y
    @ np.clip(plane, schema.HU_MIN, schema.HU_MAX).astype(np.float32)
    @ to_z.T
    for plane in hu
  ]
  thumbnail = np.tensordot(to_x, np.stack(planes), axes=(1, 0))
  return np.rint(thumbnail, out=thumbnail).astype(np.int16)


@functools.lru_cache(maxsize=64)
def resize_weights(source: int, target: int, dtype=np.float32) -> np.ndarray:
  """Returns (target, source): anti-aliasing filter, then linear samples."""
  weights = np.eye(source)
  # scikit-image's rule for the anti-aliasing filter.
  sigma = max(0.0, (source / target - 1.0) / 2.0)
  if sigma > 0.0:
    weights = ndimage.gaussian_filter1d(weights, sigma, axis=0, mode='mirror')
  position = (np.arange(target) + 0.5) * (source / target) - 0.5
  coordinates = np.stack(
    np.meshgrid(position, np.arange(source), indexing='ij')
  )
  weights = ndimage.map_coordinates(
    weights, coordinates, order=1, mode='mirror'
  ).astype(dtype)
  weights.setflags(write=False)
  return weights
