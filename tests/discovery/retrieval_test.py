"""Retrieval of places against loops over all of them."""

import numpy as np
import pytest

from transvw_tf2.discovery import retrieval


def test_the_nearest_are_those_of_a_loop():
  rng = np.random.default_rng(0)
  queries = rng.normal(size=(7, 5)).astype(np.float32)
  candidates = rng.normal(size=(20, 5)).astype(np.float32)
  rows, cosines = retrieval.find_nearest(queries, candidates, 3)
  assert rows.shape == cosines.shape == (7, 3)
  for query, found, similar in zip(queries, rows, cosines, strict=True):
    every = [
      query @ one / np.linalg.norm(query) / np.linalg.norm(one)
      for one in candidates
    ]
    want = sorted(range(20), key=lambda row, every=every: -every[row])[:3]
    assert found.tolist() == want
    np.testing.assert_allclose(similar, np.array(every)[want], atol=1e-5)


def test_no_more_than_there_are_and_nothing_is_like_zeros():
  candidates = np.array([[0, 0], [2, 0], [-1, 0]], np.float32)
  rows, cosines = retrieval.find_nearest(candidates[1:2], candidates, 9)
  assert rows.tolist() == [[1, 0, 2]]
  np.testing.assert_allclose(cosines, [[1, 0, -1]], atol=1e-6)


def test_cosines_of_pixels_are_correlations_of_blocks():
  rng = np.random.default_rng(1)
  # One voxel beyond the last whole block in x, less than a block in z.
  cubes = rng.integers(-1500, 1500, (2, 9, 8, 3)).astype(np.int16)
  rows = retrieval.describe_pixels(cubes)
  assert (rows.shape, rows.dtype) == ((2, 4), np.float32)
  means = []
  for cube in np.clip(cubes.astype(float), -1000, 1000):
    means.append(
      [cube[x : x + 4, y : y + 4].mean() for x in (0, 4) for y in (0, 4)]
    )
  want = np.corrcoef(means)[0, 1]
  _, cosines = retrieval.find_nearest(rows[:1], rows[1:], 1)
  assert cosines[0, 0] == pytest.approx(want, abs=1e-4)


def test_whitened_rows_are_uncorrelated():
  rng = np.random.default_rng(2)
  mixed = rng.normal(size=(20_000, 4)) @ np.tril(np.ones((4, 4))) + 5
  rows = mixed.astype(np.float32)
  whitened = retrieval.Whitening(rows)(rows)
  assert whitened.dtype == np.float32
  np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
  np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=0.01)


def test_whitening_finds_what_a_common_part_hides():
  rng = np.random.default_rng(3)
  words = rng.normal(size=(200, 8))
  # The loudest number says nothing of the word.
  loud = np.array([20.0, *[1.0] * 7])
  one, other = ((words + 0.1 * rng.normal(size=words.shape)) for _ in range(2))
  one[:, 0], other[:, 0] = rng.normal(size=(2, 200))
  one, other = one * loud, other * loud
  whitening = retrieval.Whitening(np.concatenate([one, other]))
  right = np.arange(200)
  plain, _ = retrieval.find_nearest(one, other, 1)
  found, _ = retrieval.find_nearest(whitening(one), whitening(other), 1)
  assert (plain[:, 0] == right).mean() < 0.5
  assert (found[:, 0] == right).mean() > 0.7


@pytest.mark.parametrize('count', [1, 2, 5])
def test_whitening_of_few_rows_is_finite(count):
  rows = np.random.default_rng(4).normal(size=(count, 64)).astype(np.float32)
  assert np.isfinite(retrieval.Whitening(rows)(rows)).all()
  # All alike: nothing sets one apart.
  same = np.ones((count, 64), np.float32)
  np.testing.assert_array_equal(retrieval.Whitening(same)(same), 0 * same)


def test_a_whitening_is_fitted_to_few_of_many_numbers(monkeypatch):
  monkeypatch.setattr(retrieval, '_FIT_NUMBERS', 60)
  fitted = []
  monkeypatch.setattr(retrieval, 'Whitening', fitted.append)
  rng = np.random.default_rng(5)
  many, few = rng.normal(size=(100, 3)), rng.normal(size=(4, 3))
  for _ in range(2):
    retrieval.fit_whitening(iter([many, few]), 2)
  one, other = fitted
  np.testing.assert_array_equal(one, other)
  chosen, rest = one[:10], one[10:]
  assert {tuple(row) for row in chosen} < {tuple(row) for row in many}
  assert {tuple(row) for row in rest} == {tuple(row) for row in few}
  # Longer rows than there are numbers for: one of each patient.
  long = rng.normal(size=(5, 99))
  retrieval.fit_whitening([long, long], 2)
  assert fitted[-1].shape == (2, 99)


def test_choices_are_scored_by_hand():
  wanted = np.array([[0.0, 0, 0], [10, 0, 0], [99, 0, 0]])
  places = np.array([[0.0, 3, 4], [10, 0, 0]])
  found = retrieval.score_choices(
    wanted,
    places,
    {'good': np.array([0, 1, 1]), 'bad': np.array([1, 0, 0])},
    radius=5.0,
  )
  # Right: place 0 for the first query (5 mm), place 1 for the second.
  assert found == pytest.approx(
    {'good': 2 / 3, 'bad': 0, 'random': 2 / 6, 'best possible': 2 / 3}
  )
