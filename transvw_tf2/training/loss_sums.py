"""Adds up the losses of steps without waiting for the device."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class LossSums:
  """Sums by name, in float64 on the device."""

  def __init__(self, initial: Mapping[str, float] | None = None):
    """Initialises the sums, to those of earlier steps if there are any."""
    self._totals = {
      name: tf.constant(value, tf.float64)
      for name, value in (initial or {}).items()
    }
    self._not_finite = tf.constant(-1, tf.int64)

  def add(self, values: Mapping[str, tf.Tensor]) -> None:
    """Adds tensors of any shape, the same in every call."""
    for name, value in values.items():
      value = tf.cast(value, tf.float64)
      self._totals[name] = self._totals.get(name, 0.0) + value

  def add_steps(self, values: Mapping[str, tf.Tensor], first: int) -> None:
    """Adds the losses of steps.

    Args:
      values: float32 () of one step or (count,) of several, `loss` among them.
      first: number of the first of these steps.
    """
    self.add({name: tf.reduce_sum(value) for name, value in values.items()})
    wrong = ~tf.math.is_finite(tf.reshape(values['loss'], (-1,)))
    is_first = tf.reduce_any(wrong) & (self._not_finite < 0)
    self._not_finite = tf.where(
      is_first, first + tf.argmax(wrong), self._not_finite
    )

  def first_not_finite(self) -> int | None:
    """Returns the number of the first step whose loss is not finite."""
    number = int(self._not_finite)
    return None if number < 0 else number

  def values(self) -> dict[str, float | np.ndarray]:
    """Returns the sums, floats or float64 arrays."""
    return {
      name: float(total) if total.shape.rank == 0 else total.numpy()
      for name, total in self._totals.items()
    }
