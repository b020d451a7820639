"""Learning rate and early stopping, with their counters in the checkpoint.

Keras' callbacks of the same names keep their counters in plain attributes,
which a checkpoint does not see; a resumed run would start to wait anew. They
watch train.best_metric of validation, as published the loss; one that should
rise comes with its sign changed.
"""

import importlib.util  # noqa: F401, gin 0.5 uses it without importing it

import gin
import keras
import tensorflow as tf

from transvw_tf2 import errors


def _variable(value, dtype, name):
  return tf.Variable(value, trainable=False, dtype=dtype, name=name)


class _Patience(tf.Module):
  """Counts epochs without an improvement of more than `min_delta`."""

  def __init__(self, patience, min_delta):
    super().__init__()
    if not isinstance(patience, int) or patience < 1 or min_delta < 0:
      raise errors.UserError(
        f'patience is {patience} and min_delta {min_delta}, wanted a whole'
        ' number, at least 1, and at least 0'
      )
    self.patience = patience
    self.min_delta = min_delta
    self.best = _variable(float('inf'), tf.float64, 'best')
    self.wait = _variable(0, tf.int64, 'wait')

  def exhausted(self, value: float) -> bool:
    """Takes the value of an epoch; returns whether patience is over."""
    if value < float(self.best.numpy()) - self.min_delta:
      self.best.assign(value)
      self.wait.assign(0)
      return False
    self.wait.assign_add(1)
    return self.over

  @property
  def over(self) -> bool:
    """Whether patience, as it is now, is over."""
    return int(self.wait.numpy()) >= self.patience


@gin.configurable(module='schedules')
class ReduceOnPlateau(tf.Module):
  """Lowers the learning rate when validation has not improved for some epochs.

  As keras.callbacks.ReduceLROnPlateau; the defaults are the paper's.
  """

  def __init__(
    self,
    factor: float = 0.5,
    patience: int = 20,
    min_delta: float = 1e-4,
    min_learning_rate: float = 1e-6,
  ):
    """Initialises the schedule.

    Args:
      factor: what the learning rate is multiplied with.
      patience: epochs without improvement.
      min_delta: smaller improvements do not count.
      min_learning_rate: it is not lowered below this.
    """
    super().__init__()
    if not 0 < factor < 1:
      raise errors.UserError(
        f'ReduceOnPlateau.factor is {factor}, wanted between 0 and 1'
      )
    self._factor = factor
    self._min_learning_rate = min_learning_rate
    self.patience = _Patience(patience, min_delta)

  def next_rate(self, rate: float, epoch: int, value: float) -> float:
    """Returns the learning rate after `epoch`, which ended with `value`."""
    del epoch
    if not self.patience.exhausted(value) or rate <= self._min_learning_rate:
      return rate
    self.patience.wait.assign(0)
    return max(rate * self._factor, self._min_learning_rate)


@gin.configurable(module='schedules')
class StepDecay(tf.Module):
  """Multiplies the learning rate every `epochs` epochs (PyTorch's StepLR)."""

  def __init__(self, factor: float = 0.5, epochs: int = 40):
    """Initialises the schedule; the defaults are the published PyTorch's."""
    super().__init__()
    if not 0 < factor < 1 or epochs < 1:
      raise errors.UserError(
        f'StepDecay has factor {factor} and epochs {epochs}, wanted a factor '
        'between 0 and 1 and at least 1 epoch'
      )
    self._factor = factor
    self._epochs = epochs

  def next_rate(self, rate: float, epoch: int, value: float) -> float:
    """Returns the learning rate after `epoch` (from 1)."""
    del value
    return rate * self._factor if epoch % self._epochs == 0 else rate


@gin.configurable(module='schedules')
class CosineDecay(tf.Module):
  """Lowers the learning rate along half a cosine, and then keeps it.

  As keras.optimizers.schedules.CosineDecay, in steps of an epoch (Loshchilov
  and Hutter, arXiv 1608.03983, equation 5, without restarts).
  """

  def __init__(self, epochs: int = gin.REQUIRED, alpha: float = 0.01):
    """Initialises the schedule.

    Args:
      epochs: that it takes, those of `train.epochs` as a rule.
      alpha: lowest learning rate, as a share of the first.
    """
    super().__init__()
    if epochs < 1 or not 0 < alpha < 1:
      raise errors.UserError(
        f'CosineDecay has epochs {epochs} and alpha {alpha}, wanted at least 1'
        ' epoch and an alpha between 0 and 1'
      )
    self._share = keras.optimizers.schedules.CosineDecay(
      1.0, epochs, alpha=alpha
    )

  def next_rate(self, rate: float, epoch: int, value: float) -> float:
    """Returns the learning rate after `epoch` (from 1)."""
    del value
    return rate * float(self._share(epoch) / self._share(epoch - 1))


@gin.configurable(module='schedules')
class EarlyStopping(tf.Module):
  """Stops when validation has not improved for `patience` epochs."""

  def __init__(self, patience: int = 50, min_delta: float = 0.0):
    """Initialises early stopping.

    Args:
      patience: epochs without improvement.
      min_delta: smaller improvements do not count.
    """
    super().__init__()
    self.patience = _Patience(patience, min_delta)

  @property
  def over(self) -> bool:
    """Whether training is over; a run goes on with more patience."""
    return self.patience.over

  def update(self, value: float) -> None:
    """Takes the value of an epoch, lower is better."""
    self.patience.exhausted(value)
