"""Ranks patients by how much their scans resemble a reference."""

import numpy as np
from scipy.spatial import distance

# Distances are rounded to this many digits, so that the last bits, which
# differ between machines, cannot decide a rank.
DISTANCE_DIGITS = 6


def rank(
  reference: np.ndarray, descriptors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Ranks scans by L2 distance of their descriptors to a reference.

  Args:
    reference: float32 (D,), descriptor of the reference scan.
    descriptors: float32 (N, D), rows sorted by scan id: ties are broken by
      that order.

  Returns:
    order: int64 (N,), row numbers from the nearest to the farthest.
    distances: float64 (N,), rounded L2 distance of each row of `order`.

  Raises:
    ValueError: a descriptor is not finite.
  """
  distances = distance.cdist(
    np.asarray(reference, np.float64)[np.newaxis],
    np.asarray(descriptors, np.float64),
  )[0]
  if not np.isfinite(distances).all():
    raise ValueError('descriptors must be finite; some are NaN or infinite')
  distances = np.round(distances, DISTANCE_DIGITS)
  order = np.argsort(distances, kind='stable')
  return order, distances[order]
