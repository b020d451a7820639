"""Learning rate and stopping against Keras' callbacks, step by step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.training import schedules

_LOSSES = np.round(
  np.random.default_rng(3).normal(size=60).cumsum() * 0.01 + 1, 4
).tolist()


class _FakeModel:
  def __init__(self):
    self.optimizer = keras.optimizers.SGD(1.0)
    self.stop_training = False


def test_plateau_equals_keras():
  schedule = schedules.ReduceOnPlateau(
    factor=0.5, patience=3, min_delta=1e-2, min_learning_rate=0.1
  )
  callback = keras.callbacks.ReduceLROnPlateau(
    factor=0.5, patience=3, min_delta=1e-2, min_lr=0.1
  )
  model = _FakeModel()
  callback.set_model(model)
  callback.on_train_begin()
  rate, rates = 1.0, []
  for epoch, loss in enumerate(_LOSSES, 1):
    callback.on_epoch_end(epoch, {'val_loss': loss})
    rate = schedule.next_rate(rate, epoch, loss)
    rates.append(rate)
    assert rate == pytest.approx(float(model.optimizer.learning_rate))
  assert len(set(rates)) > 3  # it was lowered more than once
  assert min(rates) == 0.1


def test_early_stopping_equals_keras():
  stopping = schedules.EarlyStopping(patience=7)
  callback = keras.callbacks.EarlyStopping(patience=7)
  model = _FakeModel()
  callback.set_model(model)
  callback.on_train_begin()
  for epoch, loss in enumerate(_LOSSES):
    callback.on_epoch_end(epoch, {'val_loss': loss})
    stopping.update(loss)
    assert stopping.over == model.stop_training
    if stopping.over:
      break
  assert stopping.over


def _rates(schedule, rate, epochs):
  """Returns the learning rate after each epoch."""
  rates = []
  for epoch in range(1, epochs + 1):
    rate = schedule.next_rate(rate, epoch, 1.0)
    rates.append(rate)
  return rates


def test_step_decay():
  rates = _rates(schedules.StepDecay(factor=0.5, epochs=3), 1.0, 7)
  assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_cosine_decay_equals_its_closed_form():
  rates = _rates(schedules.CosineDecay(epochs=4, alpha=0.1), 3.0, 6)
  shares = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(1, 5) / 4)) / 2
  wanted = 3.0 * np.append(shares, [0.1, 0.1])
  np.testing.assert_allclose(rates, wanted, rtol=1e-6)


def test_counters_are_in_the_checkpoint(tmp_path):
  def run(losses, schedule, stopping, rate):
    for epoch, loss in enumerate(losses, 1):
      rate = schedule.next_rate(rate, epoch, loss)
      stopping.update(loss)
    return rate, stopping.over

  def make():
    return (
      schedules.ReduceOnPlateau(patience=4),
      schedules.EarlyStopping(patience=6),
    )

  whole = run([1.0] * 7, *make(), 1.0)
  first, second = make(), make()
  rate, _ = run([1.0] * 3, *first, 1.0)
  path = tf.train.Checkpoint(a=first[0], b=first[1]).write(str(tmp_path / 'c'))
  tf.train.Checkpoint(a=second[0], b=second[1]).read(path)
  assert run([1.0] * 4, *second, rate) == whole == (0.5, True)


def test_with_more_patience_a_run_that_was_over_goes_on(tmp_path):
  stopping = schedules.EarlyStopping(patience=2)
  for _ in range(3):
    stopping.update(1.0)
  assert stopping.over
  path = tf.train.Checkpoint(a=stopping).write(str(tmp_path / 'c'))
  patient = schedules.EarlyStopping(patience=4)
  tf.train.Checkpoint(a=patient).read(path).assert_consumed()
  assert not patient.over
  patient.update(1.0)
  assert not patient.over
  patient.update(1.0)
  assert patient.over


@pytest.mark.parametrize(
  'make',
  [
    lambda: schedules.ReduceOnPlateau(factor=1.0),
    lambda: schedules.EarlyStopping(patience=2.5),
    lambda: schedules.ReduceOnPlateau(patience=0),
    lambda: schedules.EarlyStopping(min_delta=-1.0),
    lambda: schedules.StepDecay(epochs=0),
    lambda: schedules.CosineDecay(epochs=0),
    lambda: schedules.CosineDecay(epochs=5, alpha=0.0),
  ],
)
def test_refuses_settings(make):
  with pytest.raises(errors.UserError, match='wanted'):
    make()
