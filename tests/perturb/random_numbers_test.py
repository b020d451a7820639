"""Random numbers: known answers, distributions and what they depend on."""

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from transvw_tf2.perturb import random_numbers

_STREAM = random_numbers.Stream.SHUFFLE_ORDER


def _seeds(count, first=0):
  """Seeds as close to each other as a training run makes them."""
  return np.stack(
    [np.full(count, 17), np.arange(first, first + count)], axis=1
  ).astype(np.int32)


# Key, counter and result of Threefry-2x32-20, from the known answers that the
# authors of the generator publish with it.
@pytest.mark.parametrize(
  ('key', 'counter', 'want'),
  [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    (
      (0x13198A2E, 0x03707344),
      (0x243F6A88, 0x85A308D3),
      (0xC4923A9C, 0x483DF7A0),
    ),
  ],
)
def test_threefry_gives_the_known_answers(key, counter, want):
  got = random_numbers.threefry(
    [tf.constant(word, tf.uint32) for word in key],
    [tf.constant(word, tf.uint32) for word in counter],
  )
  assert tuple(int(word) for word in got) == want


def test_uniform_is_threefry_of_seed_place_and_stream():
  seeds = np.array([[3, -5]], np.int32)
  got = random_numbers.draw_uniform(seeds, _STREAM, (4,)).numpy()
  words = [
    random_numbers.threefry(
      [tf.constant(3, tf.uint32), tf.constant(2**32 - 5, tf.uint32)],
      [tf.constant(place, tf.uint32), tf.constant(int(_STREAM), tf.uint32)],
    )
    for place in range(2)
  ]
  # The first words of all places, then the second; the upper 23 bits of each.
  want = [int(pair[word]) // 2**9 / 2**23 for word in (0, 1) for pair in words]
  assert got.tolist() == [want]


def test_uniform_has_the_uniform_distribution():
  numbers = random_numbers.draw_uniform(_seeds(4096), _STREAM, (3, 5)).numpy()
  assert numbers.shape == (4096, 3, 5) and numbers.dtype == np.float32
  assert numbers.min() >= 0 and numbers.max() < 1
  counts, _ = np.histogram(numbers, bins=64, range=(0, 1))
  assert stats.chisquare(counts).pvalue > 1e-3
  # Over the seeds as well, for each place.
  for column in numbers.reshape(4096, 15).T:
    assert stats.kstest(column, 'uniform').pvalue > 1e-4


def test_normal_has_the_normal_distribution():
  numbers = random_numbers.draw_normal(_seeds(2048), _STREAM, (3, 7)).numpy()
  assert numbers.shape == (2048, 3, 7) and numbers.dtype == np.float32
  assert stats.kstest(numbers.ravel(), 'norm').pvalue > 1e-3
  correlation = np.corrcoef(numbers.reshape(2048, 21), rowvar=False)
  np.testing.assert_allclose(correlation, np.eye(21), atol=5 / 2048**0.5)


def test_streams_and_seeds_are_independent():
  numbers = np.stack(
    [
      random_numbers.draw_uniform(_seeds(4096), stream, (2,)).numpy()
      for stream in random_numbers.Stream
    ],
    axis=-1,
  )
  streams = len(random_numbers.Stream)
  assert streams == 11 and len(set(random_numbers.Stream)) == 11
  variables = numbers.reshape(4096, -1)
  following = np.concatenate([variables[:-1], variables[1:]], axis=1)
  correlation = np.corrcoef(following, rowvar=False)
  np.testing.assert_allclose(
    correlation, np.eye(4 * streams), atol=5 / 4096**0.5
  )


@pytest.mark.parametrize(
  'draw', [random_numbers.draw_uniform, random_numbers.draw_normal]
)
def test_a_number_depends_on_its_seed_alone(draw):
  seeds = np.array([[1, 2], [2, 1], [1, -2], [1, 2]], np.int32)
  numbers = draw(seeds, _STREAM, (101,)).numpy()
  # Sines and cosines in vector registers and out of them differ by rounding.
  np.testing.assert_allclose(numbers[0], numbers[3], rtol=0, atol=1e-6)
  assert not np.isclose(numbers[0], numbers[1:3]).all(axis=1).any()
  for seed, row in zip(seeds, numbers, strict=True):
    alone = draw(seed[None], _STREAM, (101,))[0]
    np.testing.assert_allclose(alone, row, rtol=0, atol=1e-6)


def test_compiled_numbers_are_the_same():
  draw = tf.function(
    lambda seeds: (
      random_numbers.draw_uniform(seeds, _STREAM, (50,)),
      random_numbers.draw_normal(seeds, _STREAM, (51,)),
    ),
    jit_compile=True,
  )
  seeds = _seeds(20)
  uniform, normal = draw(tf.constant(seeds))
  np.testing.assert_array_equal(
    uniform, random_numbers.draw_uniform(seeds, _STREAM, (50,))
  )
  np.testing.assert_allclose(
    normal, random_numbers.draw_normal(seeds, _STREAM, (51,)), atol=2e-6
  )


def test_integers_reach_both_ends_and_no_further():
  ends = np.array([0, 1 - 2.0**-23], np.float32)
  for count in [*range(1, 300), 4097, 99_999]:
    got = random_numbers.to_integers(ends, -3, count - 4).numpy()
    assert got.tolist() == [-3, count - 4]


def test_integers_are_uniform_over_a_closed_interval():
  uniform = random_numbers.draw_uniform(_seeds(7000), _STREAM, (1,))
  integers = random_numbers.to_integers(uniform, 4, 10).numpy()
  values, counts = np.unique(integers, return_counts=True)
  assert values.tolist() == [4, 5, 6, 7, 8, 9, 10]
  assert stats.chisquare(counts).pvalue > 1e-3
