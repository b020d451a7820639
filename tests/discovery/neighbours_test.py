"""Ranks against brute force, and how ties are broken."""

import numpy as np
import pytest

from transvw_tf2.discovery import neighbours


def test_ranks_by_l2_distance():
  rng = np.random.default_rng(0)
  descriptors = rng.normal(size=(40, 7)).astype(np.float32)
  reference = descriptors[11]
  order, distances = neighbours.rank(reference, descriptors)
  wanted = [
    sum((float(a) - float(b)) ** 2 for a, b in zip(reference, row, strict=True))
    ** 0.5
    for row in descriptors
  ]
  assert order.tolist() == sorted(range(40), key=lambda row: wanted[row])
  np.testing.assert_allclose(distances, sorted(wanted), rtol=0, atol=5.1e-7)
  assert order[0] == 11
  assert distances[0] == 0.0
  assert distances.dtype == np.float64


def test_distances_have_six_digits():
  descriptors = np.array([[0.0], [1 / 3], [2e-7], [123456.7890123]])
  _, distances = neighbours.rank(np.zeros(1), descriptors)
  assert distances.tolist() == [0.0, 0.0, 0.333333, 123456.789012]
  assert [float(f'{one:.6f}') for one in distances] == distances.tolist()


def test_ties_keep_the_order_of_the_rows():
  descriptors = np.array([[1.0], [-1.0], [0.5], [1.0000002], [1.0]])
  order, _ = neighbours.rank(np.zeros(1), descriptors)
  assert order.tolist() == [2, 0, 1, 3, 4]
  # Many, since NumPy sorts a few in a stable way whatever it is asked for.
  many = np.tile([[2.0], [1.0], [3.0]], (100, 1))
  order, _ = neighbours.rank(np.zeros(1), many)
  assert order.tolist() == [*range(1, 300, 3), *range(0, 300, 3)] + [
    *range(2, 300, 3)
  ]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_descriptors_must_be_finite(bad):
  with pytest.raises(ValueError, match='must be finite'):
    neighbours.rank(np.zeros(2), np.array([[0.0, 0.0], [bad, 0.0]]))
