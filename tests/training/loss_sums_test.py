"""Sums of losses against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2.training import loss_sums


def test_sums_of_steps_one_by_one_and_several_at_once():
  losses = np.random.default_rng(0).random(7).astype(np.float32)
  sums = loss_sums.LossSums({'loss': 2.5})
  sums.add_steps({'loss': tf.constant(losses[0])}, 0)
  sums.add_steps({'loss': tf.constant(losses[1:])}, 1)
  want = 2.5 + losses.astype(np.float64).sum()
  assert sums.values()['loss'] == pytest.approx(want, rel=1e-6)
  assert sums.first_not_finite() is None


@pytest.mark.parametrize('wrong', [np.nan, np.inf, -np.inf])
def test_the_first_step_that_is_not_finite_is_named(wrong):
  sums = loss_sums.LossSums()
  sums.add_steps({'loss': tf.constant(1.0)}, 0)
  sums.add_steps({'loss': tf.constant([1.0, 2.0, wrong, np.nan])}, 1)
  sums.add_steps({'loss': tf.constant(wrong)}, 5)
  assert sums.first_not_finite() == 3


def test_arrays_stay_arrays():
  sums = loss_sums.LossSums()
  for _ in range(2):
    sums.add({'confusion': tf.constant([[1.0, 2.0], [3.0, 4.0]])})
  np.testing.assert_array_equal(sums.values()['confusion'], [[2, 4], [6, 8]])
