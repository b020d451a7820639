"""Descriptors of whole scans, by which similar patients are found.

The default needs no training: a principal component analysis of thumbnails.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import functools

import numpy as np
from sklearn import decomposition
import threadpoolctl

from transvw_tf2 import schema
from transvw_tf2.scans import thumbnail

# The size to which the paper resizes whole scans (section III-A) ...
_RESIZED_SHAPE = (128, 128, 64)
# ... and the thumbnail that the principal component analysis sees: its means
# over 4x4x4 voxels.
THUMBNAIL_SHAPE = (32, 32, 16)
MAX_COMPONENTS = 512
MAX_FIT_SCANS = 2000


def make_thumbnail(hu: np.ndarray) -> np.ndarray:
  """Returns the thumbnail of a scan.

  The scan is resized linearly with anti-aliasing to 128x128x64, as the paper
  does (scikit-image's `resize`), and averaged over 4x4x4 voxels. Both steps are
  linear and act on one axis at a time, so each axis takes one small matrix.

  Args:
    hu: int16 [x, y, z], HU.

  Returns:
    float32 (32, 32, 16) [x, y, z], clipped HU scaled to [0, 1].
  """
  to_x, to_y, to_z = (
    _thumbnail_weights(*sides)
    for sides in zip(hu.shape, _RESIZED_SHAPE, THUMBNAIL_SHAPE, strict=True)
  )
  # One plane of y and z after the other: the scan is never held as floats.
  planes = [
    to_y
    @ np.clip(plane, schema.HU_MIN, schema.HU_MAX).astype(np.float32)
    @ to_z.T
    for plane in hu
  ]
  means = np.tensordot(to_x, np.stack(planes), axes=(1, 0))
  return schema.scale_hu(means).astype(np.float32)


def fit_pca(thumbnails: np.ndarray) -> decomposition.PCA:
  """Fits the principal components of thumbnails.

  The full solver on one thread gives the same components in every run;
  scikit-learn fixes their signs.

  Args:
    thumbnails: float32 (n, 32, 32, 16) in [0, 1], n >= 2.
  """
  count = len(thumbnails)
  if count < 2:
    raise ValueError(f'descriptors need at least 2 training scans, got {count}')
  pca = decomposition.PCA(
    n_components=min(MAX_COMPONENTS, count - 1), svd_solver='full'
  )
  with threadpoolctl.threadpool_limits(1):
    return pca.fit(thumbnails.reshape(count, -1))


def project(
  pca: decomposition.PCA, thumbnails: Iterable[np.ndarray]
) -> np.ndarray:
  """Projects thumbnails, one at a time, so that memory does not grow.

  Args:
    pca: from `fit_pca`.
    thumbnails: float32 (32, 32, 16) in [0, 1] each.

  Returns:
    float32 (number of thumbnails, components).
  """
  with threadpoolctl.threadpool_limits(1):
    # In float64: the error of float32 would exceed the digits to which
    # distances are rounded.
    rows = [
      pca.transform(one.reshape(1, -1).astype(np.float64))[0]
      for one in thumbnails
    ]
  return np.asarray(rows, np.float32).reshape(-1, pca.n_components_)


def choose_fit_scans(scan_ids: Sequence[str]) -> list[str]:
  """Returns the scans the components are fitted on, sorted by id.

  At most `MAX_FIT_SCANS`, chosen by stable hash, so that a scan more or less
  hardly changes the choice.
  """
  by_hash = sorted(scan_ids, key=lambda one: (schema.stable_hash(one), one))
  return sorted(by_hash[:MAX_FIT_SCANS])


@functools.lru_cache(maxsize=64)
def _thumbnail_weights(source: int, resized: int, target: int) -> np.ndarray:
  """Returns float32 (target, source): filter, linear samples, block means."""
  weights = thumbnail.resize_weights(source, resized, np.float64)
  blocks = weights.reshape(target, resized // target, source)
  return blocks.mean(axis=1).astype(np.float32)
