"""What the best weights are chosen by, and what then follows it."""

import functools
import json

import pytest

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.training import checkpoints
from transvw_tf2.training import loop
from transvw_tf2.training import schedules


@pytest.mark.parametrize(
  ('metric', 'want'), [('loss', 1), ('accuracy', 2), (None, 1)]
)
def test_best_by_another_metric(
  tmp_path, monkeypatch, strategy, data_dir, metric, want
):
  accuracies = [0.2, 0.8, 0.5] if metric else [float('nan')] * 3
  _make_validation(monkeypatch, [0.1, 0.2, 0.3], accuracies)
  loop.train(
    str(tmp_path),
    strategy,
    tiny_data.make_settings(
      data_dir,
      epochs=3,
      best_metric=metric or 'accuracy',
      picture_epochs=4,
    ),
  )
  assert checkpoints.load_model(str(tmp_path), 'best')[1]['epoch'] == want


@pytest.mark.parametrize(
  ('metric', 'rates'),
  [('loss', [1.0, 1.0, 0.5]), ('accuracy', [1.0, 1.0, 1.0, 0.5])],
)
def test_schedule_and_early_stopping_watch_the_best_metric(
  tmp_path, monkeypatch, strategy, data_dir, metric, rates
):
  _make_validation(monkeypatch, [0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.3, 0.5])
  rows = loop.train(
    str(tmp_path),
    strategy,
    tiny_data.make_settings(
      data_dir,
      epochs=4,
      learning_rate=2**-10,
      best_metric=metric,
      picture_epochs=5,
      schedule=lambda: schedules.ReduceOnPlateau(patience=1),
      early_stopping=lambda: schedules.EarlyStopping(patience=2),
    ),
  )
  assert [2**10 * row['learning_rate'] for row in rows] == rates


def _make_validation(monkeypatch, losses, accuracies):
  """Makes validation find these values, epoch by epoch."""
  found = zip(losses, accuracies, strict=True)

  def validate(self):
    loss, accuracy = next(found)
    return {'loss': loss, 'accuracy': accuracy}, {}

  monkeypatch.setattr(loop._Loop, '_validate', validate)


@pytest.mark.parametrize('metric', ['auc', 'mse'])
def test_refuses_a_best_metric_before_it_trains(
  tmp_path, strategy, data_dir, metric
):
  with pytest.raises(
    errors.UserError, match=f"'{metric}', wanted one of loss,"
  ):
    loop.train(
      str(tmp_path / 'run'),
      strategy,
      tiny_data.make_settings(data_dir, best_metric=metric),
    )
  assert not (tmp_path / 'run').exists()


def test_a_run_keeps_its_best_metric(tmp_path, strategy, data_dir):
  train = functools.partial(loop.train, str(tmp_path), strategy)
  train(tiny_data.make_settings(data_dir, epochs=1))
  with pytest.raises(errors.UserError, match='another best_metric: "loss", no'):
    train(tiny_data.make_settings(data_dir, epochs=2, best_metric='accuracy'))
  path = tmp_path / 'model.json'
  description = json.loads(path.read_text())
  for name in ('best_metric', 'learning_rate', 'start_from'):
    del description[name]  # as of an older run
  path.write_text(json.dumps(description))
  assert len(train(tiny_data.make_settings(data_dir, epochs=2))) == 2


def test_goes_on_from_the_best_loss_of_an_older_run():
  progress = checkpoints.Progress()
  progress.deserialize('{"epoch": 4, "best_val_loss": 0.25}')
  assert (progress.epoch, progress.best) == (4, {'loss': 0.25})
