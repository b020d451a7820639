"""Finds places of other patients that look alike, and tells whether they are.

Cubes are rows of numbers here: embeddings of an encoder, or their own pixels.
"""

from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np
from scipy.spatial import distance
from sklearn import covariance
from sklearn import neighbors

from transvw_tf2 import schema

# Pixels are compared by their means over 4x4x4 voxels.
_BLOCK = 4

# A whitening is fitted to so many numbers at most: half a gigabyte, the
# embeddings of 131,072 cubes by the full network.
_FIT_NUMBERS = 2**26

RANDOM = 'random'
BEST_POSSIBLE = 'best possible'


class Whitening:
  """Makes the numbers of a row uncorrelated, with mean 0 and variance 1.

  An encoder's numbers rise and fall together, and few of them take most of a
  cosine. Whitened by what is usual in a collection, rows are compared by what
  sets them apart (Jegou and Chum, "Negative evidences and co-occurences in
  image retrieval", ECCV 2012). The covariance is shrunk towards a sphere where
  there are few rows (OAS; Chen et al., IEEE Trans. Signal Processing 58, 2010).
  """

  def __init__(self, rows: np.ndarray):
    """Fits to float32 (N, D) rows of all kinds."""
    estimate = covariance.OAS().fit(rows.astype(np.float64))
    variances, axes = np.linalg.eigh(estimate.covariance_)
    # Without any variance there is nothing to tell rows apart by: zeros.
    scales = np.zeros_like(variances)
    np.divide(1, np.sqrt(variances), out=scales, where=variances > 0)
    self._mean = estimate.location_
    self._matrix = axes * scales

  def __call__(self, rows: np.ndarray) -> np.ndarray:
    """Returns float32 (N, D), whitened, of float32 (N, D)."""
    return ((rows - self._mean) @ self._matrix).astype(np.float32)


def fit_whitening(described: Iterable[np.ndarray], patients: int) -> Whitening:
  """Fits a whitening to as many cubes of each patient, always the same ones.

  Args:
    described: by patient, float32 (N, D) rows of cubes; read one by one.
    patients: how many there are.
  """
  rng = np.random.default_rng(0)
  numbers = _FIT_NUMBERS // patients
  chosen = [
    rng.permutation(rows)[: max(1, numbers // rows.shape[1])]
    for rows in described
  ]
  return Whitening(np.concatenate(chosen))


def find_nearest(
  queries: np.ndarray, candidates: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the candidates that are most similar to each query.

  Args:
    queries: float32 (Q, D).
    candidates: float32 (N, D).
    count: how many are wanted.

  Returns:
    int64 (Q, k), rows of `candidates` from the most similar on, and float
    (Q, k), their cosine similarity; k is `count`, or N where that is less. A
    row of zeros is similar to nothing: 0.
  """
  search = neighbors.NearestNeighbors(
    n_neighbors=min(count, len(candidates)), metric='cosine', algorithm='brute'
  )
  distances, rows = search.fit(candidates).kneighbors(queries)
  return rows, 1 - distances


def describe_pixels(cubes: np.ndarray) -> np.ndarray:
  """Shrinks cubes to rows whose cosine is their normalised correlation.

  Args:
    cubes: int16 (N, X, Y, Z), HU.

  Returns:
    float32 (N, D): means over blocks of 4 x 4 x 4 voxels, those beyond the
    last whole block left out, less the mean of all of a cube.
  """
  blocks = [min(_BLOCK, side) for side in cubes.shape[1:]]
  counts = [
    side // block for side, block in zip(cubes.shape[1:], blocks, strict=True)
  ]
  x, y, z = (count * block for count, block in zip(counts, blocks, strict=True))
  hu = cubes[:, :x, :y, :z].clip(schema.HU_MIN, schema.HU_MAX)
  hu = hu.reshape(
    len(hu),
    *(part for pair in zip(counts, blocks, strict=True) for part in pair),
  )
  rows = hu.mean(axis=(2, 4, 6), dtype=np.float32).reshape(len(hu), -1)
  return rows - rows.mean(axis=1, keepdims=True)


def score_choices(
  wanted: np.ndarray,
  places: np.ndarray,
  choices: Mapping[str, np.ndarray],
  radius: float,
) -> dict[str, float]:
  """Tells how often the places chosen in a patient are the right ones.

  Args:
    wanted: float64 (Q, 3), where the queries lie in the original that both
      patients were bent from, mm.
    places: float64 (N, 3), where the places of the other patient lie there.
    choices: by method, int (Q,), the place chosen for each query.
    radius: mm within which a place is right.

  Returns:
    By method, the share of queries whose place is right; for `RANDOM` what any
    place gives on average; for `BEST_POSSIBLE` the share of queries for which
    there is a right place at all.
  """
  right = distance.cdist(wanted, places) <= radius
  rows = np.arange(len(wanted))
  return {
    **{
      method: float(right[rows, chosen].mean())
      for method, chosen in choices.items()
    },
    RANDOM: float(right.mean()),
    BEST_POSSIBLE: float(right.any(axis=1).mean()),
  }
