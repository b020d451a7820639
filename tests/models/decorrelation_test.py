"""Correlation of channels against NumPy's, and where it is taken."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2.models import decorrelation
from transvw_tf2.models import unet3d


def _features(dtype=np.float32):
  rng = np.random.default_rng(5)
  mixing = rng.normal(size=(4, 4))
  return (rng.normal(size=(2, 3, 8, 8, 4)) @ mixing + 7).astype(dtype)


def test_equals_the_correlation_of_numpy():
  features = _features()
  correlation = np.corrcoef(features.reshape(-1, 4).T)
  want = np.mean(np.square(correlation[~np.eye(4, dtype=bool)]))
  got = decorrelation.mean_squared_correlation(tf.constant(features))
  assert float(got) == pytest.approx(want, rel=1e-3)


def test_extremes():
  channel = np.random.default_rng(2).normal(size=(1, 4, 4, 4, 1))
  measure = decorrelation.mean_squared_correlation
  alike = tf.constant(np.concatenate([channel, -3 * channel], -1), tf.float32)
  assert float(measure(alike)) == pytest.approx(1, rel=1e-3)
  assert float(measure(tf.constant(channel, tf.float32))) == 0
  features = tf.Variable(_features() * [1, 1, 1, 0])  # a dead channel
  with tf.GradientTape() as tape:
    value = measure(features)
  assert np.isfinite(value)
  assert np.isfinite(tape.gradient(value, features)).all()


def test_half_precision_is_measured_in_float32():
  half = tf.constant(_features(), tf.bfloat16)
  got = decorrelation.mean_squared_correlation(half)
  assert got.dtype == tf.float32
  want = decorrelation.mean_squared_correlation(tf.cast(half, tf.float32))
  assert float(got) == float(want)


def test_collects_what_each_block_returns_in_training():
  keras.utils.set_random_seed(3)
  network = unet3d.UNet3D(base_filters=2, depth=3)
  cubes = tf.random.uniform((2, 16, 16, 8, 1), seed=1)
  network(cubes)
  with decorrelation.collect() as values:
    network(cubes, training=True)
  bottleneck = network.encoder(cubes, training=True)[0]
  # Two blocks a level, 3 down and 2 up.
  assert len(values) == 10
  want = decorrelation.mean_squared_correlation(bottleneck)
  assert float(values[5]) == pytest.approx(float(want), rel=1e-4)
  with decorrelation.collect() as values:
    network(cubes, training=False)
  assert values == []


def test_nothing_is_kept_outside():
  with decorrelation.collect() as outer:
    with decorrelation.collect() as inner:
      decorrelation.watch(tf.constant(_features()))
    decorrelation.watch(tf.constant(_features()))
  decorrelation.watch(tf.constant(_features()))
  assert (len(inner), len(outer)) == (1, 1)
