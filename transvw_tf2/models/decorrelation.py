"""Correlation between the channels of a block, to be kept low in training.

In small networks that learnt to restore, many channels said the same, and from
there another task was learnt more slowly than from random weights (README). The
penalty is that of DeCov (Cogswell et al., ICLR 2016) on correlations in place
of covariances, over voxels as well as examples.
"""

from collections.abc import Iterator
import contextlib
import threading

import tensorflow as tf

# Added to variances: a channel that is the same everywhere is like no other.
_EPSILON = 1e-4

# Each replica of tf.distribute runs in a thread of its own, and they take turns
# within a call of the network: what is collected must not mix.
_collected = threading.local()


@contextlib.contextmanager
def collect() -> Iterator[list[tf.Tensor]]:
  """Collects the mean squared correlation of each block that is called.

  Yields:
    A list that gets a float32 () for each call of `watch` in this thread.
  """
  before = getattr(_collected, 'values', None)
  _collected.values = values = []
  try:
    yield values
  finally:
    _collected.values = before


def watch(features: tf.Tensor) -> tf.Tensor:
  """Returns `features` (..., channels); measures them where one collects."""
  values = getattr(_collected, 'values', None)
  if values is not None:
    values.append(mean_squared_correlation(features))
  return features


def mean_squared_correlation(features: tf.Tensor) -> tf.Tensor:
  """Returns how correlated channels are: 0 for none, 1 for all fully.

  Args:
    features: float (..., C), of any precision.

  Returns:
    float32 (), the mean over pairs of channels of the square of Pearson's
    correlation over all voxels of the batch; 0 for a single channel.
  """
  channels = features.shape[-1]
  # float32 also under mixed precision: sums over many voxels.
  flat = tf.reshape(tf.cast(features, tf.float32), (-1, channels))
  flat -= tf.reduce_mean(flat, axis=0)
  covariance = tf.matmul(flat, flat, transpose_a=True)
  covariance /= tf.cast(tf.shape(flat)[0], tf.float32)
  scale = tf.math.rsqrt(tf.linalg.diag_part(covariance) + _EPSILON)
  correlation = covariance * scale * scale[:, tf.newaxis]
  others = tf.square(correlation) * (1 - tf.eye(channels))
  return tf.reduce_sum(others) / max(channels * (channels - 1), 1)
