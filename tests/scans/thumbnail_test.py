"""Thumbnails against SciPy as scikit-image calls it."""

import numpy as np
import pytest
from scipy import ndimage

from tests import real_ct
from transvw_tf2.scans import reader
from transvw_tf2.scans import thumbnail


def _resize_with_scipy(hu, shape):
  """scikit-image's resize(order=1, mode='reflect', anti_aliasing=True)."""
  volume = np.clip(hu, -1000, 1000).astype(np.float64)
  factors = np.divide(hu.shape, shape)
  sigma = np.maximum(0, (factors - 1) / 2)
  volume = ndimage.gaussian_filter(volume, sigma, mode='mirror')
  return ndimage.zoom(
    volume, 1 / factors, order=1, mode='mirror', grid_mode=True
  )


@pytest.mark.parametrize(
  ('size', 'shape'),
  [
    ((160, 150, 90), (128, 128, 64)),
    ((64, 65, 32), (128, 128, 64)),  # enlarged
    ((200, 130, 40), (64, 64, 48)),
  ],
)
def test_is_resize_with_anti_aliasing(size, shape):
  hu = np.random.default_rng(0).integers(-1400, 1400, size).astype(np.int16)
  found = thumbnail.make_thumbnail(hu, shape)
  assert found.dtype == np.int16
  assert found.shape == shape
  # Half a HU of rounding, and float32.
  wanted = _resize_with_scipy(hu, shape)
  assert np.abs(found - wanted).max() < 0.51
  assert found.std() > 10


def test_a_real_ct():
  hu = reader.read_scan(real_ct.path()).hu
  wanted = _resize_with_scipy(hu, thumbnail.SHAPE)
  assert np.abs(thumbnail.make_thumbnail(hu) - wanted).max() < 0.51


def test_same_size_is_exact_but_for_clipping():
  hu = np.random.default_rng(1).integers(-3000, 3000, (16, 12, 8))
  hu = hu.astype(np.int16)
  found = thumbnail.make_thumbnail(hu, hu.shape)
  np.testing.assert_array_equal(found, np.clip(hu, -1000, 1000))


def test_keeps_its_axes():
  hu = np.full((128, 100, 64), -1000, np.int16)
  hu[:, :, 40:] = 1000
  found = thumbnail.make_thumbnail(hu)
  assert (found[..., :39] == -1000).all() and (found[..., 41:] == 1000).all()
