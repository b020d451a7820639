"""Thumbnails against SciPy as scikit-image calls it; components by algebra."""

import numpy as np
import pytest
from scipy import ndimage

from tests import real_ct
from transvw_tf2.discovery import descriptors
from transvw_tf2.scans import reader


def _scan(size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-1400, 1400, size).astype(np.int16)


def _thumbnail_with_scipy(hu):
  """scikit-image's resize(order=1, mode='reflect', anti_aliasing=True)."""
  volume = (np.clip(hu, -1000, 1000).astype(np.float64) + 1000) / 2000
  factors = np.divide(hu.shape, (128, 128, 64))
  sigma = np.maximum(0, (factors - 1) / 2)
  volume = ndimage.gaussian_filter(volume, sigma, mode='mirror')
  volume = ndimage.zoom(
    volume, 1 / factors, order=1, mode='mirror', grid_mode=True
  )
  assert volume.shape == (128, 128, 64)
  return volume.reshape(32, 4, 32, 4, 16, 4).mean(axis=(1, 3, 5))


@pytest.mark.parametrize(
  'size', [(160, 150, 90), (128, 128, 64), (64, 65, 32), (200, 130, 40)]
)
def test_thumbnail_is_resize_with_anti_aliasing_and_a_mean(size):
  hu = _scan(size)
  thumbnail = descriptors.make_thumbnail(hu)
  assert thumbnail.shape == descriptors.THUMBNAIL_SHAPE == (32, 32, 16)
  assert thumbnail.dtype == np.float32
  np.testing.assert_allclose(
    thumbnail, _thumbnail_with_scipy(hu), rtol=0, atol=2e-6
  )
  assert thumbnail.std() > 1e-3


def test_thumbnail_of_a_real_ct():
  hu = reader.read_scan(real_ct.path()).hu
  np.testing.assert_allclose(
    descriptors.make_thumbnail(hu), _thumbnail_with_scipy(hu), atol=2e-6
  )


def test_thumbnail_of_a_flat_scan_clips_and_scales():
  for hu, wanted in ((-3000, 0.0), (-150, 0.425), (3000, 1.0)):
    thumbnail = descriptors.make_thumbnail(np.full((80, 90, 40), hu, np.int16))
    np.testing.assert_allclose(thumbnail, wanted, atol=1e-6)


def test_thumbnail_keeps_its_axes():
  hu = np.full((128, 128, 64), -1000, np.int16)
  hu[:64] = 1000
  thumbnail = descriptors.make_thumbnail(hu)
  assert thumbnail[:16].min() > 0.99 and thumbnail[16:].max() < 0.01


def _thumbnails(count, seed=0):
  rng = np.random.default_rng(seed)
  base = rng.random((3, *descriptors.THUMBNAIL_SHAPE))
  weights = rng.random((count, 3, 1, 1, 1))
  noise = 0.05 * rng.random((count, *descriptors.THUMBNAIL_SHAPE))
  return ((weights * base).sum(axis=1) / 3 + noise).astype(np.float32)


def test_distances_of_descriptors_are_those_of_thumbnails():
  """n - 1 components span n scans, so that no distance is lost."""
  thumbnails = _thumbnails(12)
  pca = descriptors.fit_pca(thumbnails)
  found = descriptors.project(pca, thumbnails)
  assert found.dtype == np.float32
  assert found.shape == (12, 11)
  flat = thumbnails.reshape(12, -1).astype(np.float64)
  for i in range(12):
    np.testing.assert_allclose(
      np.linalg.norm(found - found[i], axis=1),
      np.linalg.norm(flat - flat[i], axis=1),
      atol=2e-5,
    )


def test_components_are_the_eigenvectors_of_the_covariance():
  thumbnails = _thumbnails(9)
  pca = descriptors.fit_pca(thumbnails)
  flat = thumbnails.reshape(9, -1).astype(np.float64)
  centred = flat - flat.mean(axis=0)
  # From the small Gram matrix, by hand.
  values, vectors = np.linalg.eigh(centred @ centred.T)
  components = (centred.T @ vectors[:, ::-1][:, :8]).T
  components /= np.linalg.norm(components, axis=1, keepdims=True)
  # Sign rule: the largest entry is positive.
  largest = np.abs(components).argmax(axis=1)
  components *= np.sign(components[np.arange(8), largest])[:, None]
  np.testing.assert_allclose(pca.components_, components, atol=2e-3)
  np.testing.assert_allclose(
    pca.explained_variance_, values[::-1][:8] / 8, rtol=1e-3
  )


def test_a_scan_is_projected_alike_alone_and_among_others():
  thumbnails = _thumbnails(8)
  pca = descriptors.fit_pca(thumbnails[:5])
  together = descriptors.project(pca, thumbnails)
  alone = [descriptors.project(pca, [one])[0] for one in thumbnails]
  np.testing.assert_array_equal(together, alone)
  backwards = descriptors.project(pca, thumbnails[::-1])
  np.testing.assert_array_equal(together, backwards[::-1])
  assert descriptors.project(pca, iter(thumbnails)).shape == (8, 4)
  assert descriptors.project(pca, []).shape == (0, 4)


def test_fitting_twice_gives_the_same_bits():
  thumbnails = _thumbnails(10)
  one = descriptors.fit_pca(thumbnails)
  other = descriptors.fit_pca(thumbnails.copy())
  np.testing.assert_array_equal(one.components_, other.components_)
  np.testing.assert_array_equal(one.mean_, other.mean_)


def test_equal_scans_lie_at_distance_zero():
  thumbnails = np.repeat(_thumbnails(1), 3, axis=0)
  found = descriptors.project(descriptors.fit_pca(thumbnails), thumbnails)
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found[0], found[1])


def test_two_training_scans_are_the_least():
  assert descriptors.fit_pca(_thumbnails(2)).n_components_ == 1
  with pytest.raises(ValueError, match='at least 2 training scans, got 1'):
    descriptors.fit_pca(_thumbnails(1))


def test_at_most_2000_scans_are_fitted_chosen_by_their_ids(monkeypatch):
  ids = [f'1.2.{one}' for one in range(30)]
  assert descriptors.choose_fit_scans(ids) == sorted(ids)
  assert descriptors.MAX_FIT_SCANS == 2000
  monkeypatch.setattr(descriptors, 'MAX_FIT_SCANS', 10)
  chosen = descriptors.choose_fit_scans(ids)
  assert len(chosen) == 10
  assert chosen == sorted(chosen)
  assert descriptors.choose_fit_scans(ids[::-1]) == chosen
  # One scan more replaces one at most.
  again = descriptors.choose_fit_scans([*ids, 'new'])
  assert len(set(again) & set(chosen)) >= 9
