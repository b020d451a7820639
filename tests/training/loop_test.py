"""The whole loop in seconds: it learns, resumes exactly, and refuses."""

import contextlib
import functools
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.training import assembly
from transvw_tf2.training import checkpoints
from transvw_tf2.training import devices
from transvw_tf2.training import interruption
from transvw_tf2.training import loop
from transvw_tf2.training import reports
from transvw_tf2.training import schedules
from transvw_tf2.training import tasks


def test_history(run):
  workdir, rows = run
  assert [row['epoch'] for row in rows] == [1, 2, 3]
  assert reports.read_history(str(workdir)) == rows
  for split in ('train', 'validation'):
    for name in ('loss', 'mse', 'cross_entropy', 'accuracy', 'perturbed_mse'):
      assert np.isfinite(rows[0][f'{split}/{name}'])
    # loss = MSE + 0.01 * cross-entropy
    assert rows[0][f'{split}/loss'] == pytest.approx(
      rows[0][f'{split}/mse'] + 0.01 * rows[0][f'{split}/cross_entropy'],
      rel=1e-5,
    )
  # Validation cubes are perturbed alike in every epoch, training ones anew.
  perturbed = {row['validation/perturbed_mse'] for row in rows}
  assert len(perturbed) == 1
  assert len({row['train/perturbed_mse'] for row in rows}) == 3


def test_best_is_the_epoch_with_the_lowest_validation_loss(run):
  workdir, rows = run
  losses = [row['validation/loss'] for row in rows]
  _, metadata = checkpoints.load_model(str(workdir), 'best')
  assert metadata['epoch'] == 1 + int(np.argmin(losses))
  assert metadata['val_loss'] == min(losses)
  assert metadata['words'] == list(tiny_data.WORDS)
  assert checkpoints.load_model(str(workdir), 'latest')[1]['epoch'] == 3


@pytest.mark.long
def test_same_seed_same_weights(run, tmp_path, strategy, data_dir):
  again = tiny_data.train(tmp_path / 'again', strategy, data_dir, epochs=3)
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path / 'again'), tiny_data.load_weights(run[0])
  )
  assert [row['validation/loss'] for row in again] == [
    row['validation/loss'] for row in run[1]
  ]
  tiny_data.train(tmp_path / 'other', strategy, data_dir, epochs=1, seed=2)
  other = tiny_data.load_weights(tmp_path / 'other')
  assert not np.array_equal(other[0], tiny_data.load_weights(run[0])[0])


def test_resumes_after_an_epoch(run, tmp_path, strategy, data_dir):
  tiny_data.train(tmp_path, strategy, data_dir, epochs=1)
  rows = tiny_data.train(tmp_path, strategy, data_dir, epochs=3)
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path), tiny_data.load_weights(run[0])
  )
  for row, want in zip(rows, run[1], strict=True):
    for name in set(want) - {'cubes_per_second'}:
      assert row[name] == want[name], name


def test_resumes_within_an_epoch(
  run, tmp_path, strategy, data_dir, monkeypatch
):
  """Stopped in step 3 of epoch 2, after a checkpoint in step 2."""
  real = assembly.step_lib.Steps
  count = {'steps': 0}

  class _Stops(real):
    def __init__(self, **kwargs):
      super().__init__(**kwargs)
      train = self.train

      def stop_in_time(*args):
        count['steps'] += 1
        if count['steps'] == 4 + 3:
          raise KeyboardInterrupt
        return train(*args)

      self.train = stop_in_time

  monkeypatch.setattr(assembly.step_lib, 'Steps', _Stops)
  with pytest.raises(KeyboardInterrupt):
    tiny_data.train(tmp_path, strategy, data_dir, epochs=3, checkpoint_steps=2)
  monkeypatch.setattr(assembly.step_lib, 'Steps', real)
  rows = tiny_data.train(
    tmp_path, strategy, data_dir, epochs=3, checkpoint_steps=2
  )
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path), tiny_data.load_weights(run[0])
  )
  # The means of the epoch are those of all its steps.
  for row, want in zip(rows, run[1], strict=True):
    assert row['train/loss'] == pytest.approx(want['train/loss'], rel=1e-9)


def test_early_stopping_and_plateau(tmp_path, strategy, data_dir):
  train = functools.partial(
    tiny_data.train,
    tmp_path,
    strategy,
    data_dir,
    epochs=20,
    learning_rate=1e-9,  # nothing improves by min_delta
    schedule=lambda: schedules.ReduceOnPlateau(
      patience=1, min_learning_rate=1e-12
    ),
    early_stopping=lambda: schedules.EarlyStopping(patience=3, min_delta=0.1),
  )
  rows = train()
  assert len(rows) == 4
  rates = [row['learning_rate'] for row in rows]
  assert rates[0] == rates[1] == pytest.approx(1e-9)
  assert rates[2] == pytest.approx(5e-10)
  assert len(train()) == 4


@pytest.mark.long
def test_it_learns(tmp_path, strategy, data_dir):
  rows = tiny_data.train(
    tmp_path, strategy, data_dir, epochs=25, learning_rate=1e-2, batch_size=6
  )
  assert rows[-1]['train/loss'] < 0.3 * rows[0]['train/loss']
  assert rows[-1]['train/accuracy'] > 0.6  # chance is 1/3


def test_weights_that_the_last_step_broke_are_not_saved(
  tmp_path, strategy, data_dir, monkeypatch
):
  tiny_data.train(tmp_path, strategy, data_dir, epochs=1)
  before = tiny_data.load_weights(tmp_path)
  monkeypatch.setattr(
    loop._Loop, '_validate', lambda self: ({'loss': float('nan')}, {})
  )
  with pytest.raises(errors.UserError, match=r'after epoch 2: give a lower'):
    tiny_data.train(tmp_path, strategy, data_dir, epochs=2)
  tiny_data.assert_equal(tiny_data.load_weights(tmp_path), before)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, strategy, data_dir):
  tiny_data.train(tmp_path, strategy, data_dir, epochs=1)
  before = tiny_data.load_weights(tmp_path)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      tiny_data.AddNoise, 'call', lambda self, cubes, seeds: cubes * np.nan
    )
    with pytest.raises(
      errors.UserError, match=r'in epoch 2.*--workdir, or train\.start'
    ):
      tiny_data.train(tmp_path, strategy, data_dir, epochs=2)
  tiny_data.assert_equal(tiny_data.load_weights(tmp_path), before)
  assert len(tiny_data.train(tmp_path, strategy, data_dir, epochs=2)) == 2


def test_the_step_whose_loss_is_not_finite_is_named(
  tmp_path, strategy, data_dir
):
  def break_third_step(self, batch, seeds):
    inputs = self._perturb(batch['cube'], seeds)
    third = tf.reduce_any(batch['index'] == 2 * 4)
    return tf.where(third, float('nan'), inputs)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tasks.Pretrain, 'make_inputs', break_third_step)
    with pytest.raises(errors.UserError, match='in epoch 1, step 3: give'):
      tiny_data.train(tmp_path, strategy, data_dir)


class LittleMemory(tiny_data.AddNoise):
  """Fails as a device does that can hold only so many cubes."""

  most = 2

  def call(self, cubes, seeds):
    def check(cubes):
      if len(cubes) > self.most:
        raise MemoryError('too many cubes')
      return cubes

    checked = tf.numpy_function(check, [cubes], tf.float32)
    return super().call(tf.ensure_shape(checked, cubes.shape), seeds)


@pytest.mark.long
def test_out_of_memory_divides_the_batch(tmp_path, strategy, data_dir, caplog):
  settings = {'steps_per_call': 3, 'epochs': 1}
  rows = tiny_data.train(
    tmp_path / 'short',
    strategy,
    data_dir,
    task=functools.partial(tiny_data.make_task, perturb=LittleMemory),
    **settings,
  )
  assert 'train.accumulation is 2 from now on' in caplog.text
  want = tiny_data.train(
    tmp_path / 'asked', strategy, data_dir, accumulation=2, **settings
  )
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path / 'short'),
    tiny_data.load_weights(tmp_path / 'asked'),
  )
  assert [row['validation/loss'] for row in rows] == [
    row['validation/loss'] for row in want
  ]


def test_one_cube_that_does_not_fit_is_one_line(
  tmp_path, strategy, data_dir, monkeypatch
):
  monkeypatch.setattr(LittleMemory, 'most', 0)
  with pytest.raises(errors.UserError, match='1 cubes at a time do not fit'):
    tiny_data.train(
      tmp_path,
      strategy,
      data_dir,
      task=functools.partial(tiny_data.make_task, perturb=LittleMemory),
      batch_size=2,
    )


# In training, in validation.
@pytest.mark.parametrize('calls', [2, pytest.param(5, marks=pytest.mark.long)])
def test_a_run_that_is_asked_to_stop_goes_on_exactly(
  run, tmp_path, strategy, data_dir, calls
):
  asked = iter([False] * calls + [True])
  settings = tiny_data.make_settings(data_dir, epochs=3)
  with pytest.raises(interruption.Interrupted, match='in epoch 1 after step'):
    loop.train(
      str(tmp_path), strategy, settings, should_stop=lambda: next(asked)
    )
  rows = tiny_data.train(tmp_path, strategy, data_dir, epochs=3)
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path), tiny_data.load_weights(run[0])
  )
  for row, want in zip(rows, run[1], strict=True):
    for name in set(want) - {'cubes_per_second'}:
      assert row[name] == pytest.approx(want[name], rel=1e-12), name
  # No step was left of an epoch that had been in validation.
  assert np.isnan(rows[0]['cubes_per_second']) == (calls == 5)


def test_a_run_that_nobody_listens_to_goes_on(
  tmp_path, strategy, data_dir, monkeypatch
):
  read, write = os.pipe()
  os.close(read)
  with open(write, 'w', encoding='utf-8', buffering=1) as closed:
    monkeypatch.setattr('sys.stdout', closed)
    rows = tiny_data.train(tmp_path, strategy, data_dir, epochs=1)
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
      closed.close()
  assert len(rows) == 1


@pytest.mark.parametrize(
  'settings', [{'steps_per_call': 3}, {'inputs_in_pipeline': True}]
)
def test_other_ways_to_the_same_result(
  run, tmp_path, strategy, data_dir, settings
):
  rows = tiny_data.train(tmp_path, strategy, data_dir, epochs=3, **settings)
  for row, want in zip(rows, run[1], strict=True):
    for name in set(want) - {'cubes_per_second'}:
      assert row[name] == pytest.approx(want[name], rel=1e-4), name


def test_a_crop_that_the_network_cannot_take_is_refused(
  tmp_path, strategy, data_dir
):
  task = functools.partial(tiny_data.make_task, crop=(12, 16, 6))
  with pytest.raises(
    errors.UserError, match=r'\(12, 16, 6\) .* not fit the mod'
  ):
    tiny_data.train(tmp_path / 'run', strategy, data_dir, epochs=1, task=task)
  assert not (tmp_path / 'run').exists()


def test_channels_are_kept_different(run, tmp_path, strategy, data_dir):
  rows = tiny_data.train(
    tmp_path, strategy, data_dir, epochs=1, decorrelation_weight=1.0
  )
  # Of the weights, which the penalty pulls elsewhere.
  assert rows[0]['validation/loss'] != run[1][0]['validation/loss']


def test_trains_and_validates_on_parts(tmp_path, strategy, data_dir):
  shapes = set()

  def make_task():
    task = tiny_data.make_task(crop=(8, 8, 8))
    make_inputs = task.make_inputs

    def record(batch, seeds):
      shapes.add(tuple(batch['cube'].shape[1:]))
      return make_inputs(batch, seeds)

    task.make_inputs = record
    return task

  rows = tiny_data.train(tmp_path, strategy, data_dir, epochs=3, task=make_task)
  assert shapes == {(8, 8, 8, 1)}
  assert rows[-1]['train/loss'] < rows[0]['train/loss']
  # The parts of validation are the same in all epochs, those of training not.
  name = 'perturbed_mse'
  assert len({row[f'validation/{name}'] for row in rows}) == 1
  assert len({row[f'train/{name}'] for row in rows}) == len(rows)


@tiny_data.needs_amx
def test_bfloat16_resumes_exactly(tmp_path, strategy, data_dir):
  settings = {'precision': 'bfloat16'}
  tiny_data.train(tmp_path / 'whole', strategy, data_dir, epochs=2, **settings)
  tiny_data.train(tmp_path / 'cut', strategy, data_dir, epochs=1, **settings)
  tiny_data.train(tmp_path / 'cut', strategy, data_dir, epochs=2, **settings)
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path / 'cut'),
    tiny_data.load_weights(tmp_path / 'whole'),
  )
  # What is exported computes in float32.
  model, _ = checkpoints.load_model(str(tmp_path / 'whole'))
  assert model.compute_dtype == 'float32'
  with pytest.raises(errors.UserError, match='another precision'):
    tiny_data.train(tmp_path / 'whole', strategy, data_dir)


def test_float16_on_cpu_is_one_line(tmp_path, strategy, data_dir):
  with pytest.raises(errors.UserError, match='needs a GPU'):
    tiny_data.train(tmp_path, strategy, data_dir, precision='float16')


@pytest.mark.long
def test_stages(tmp_path, strategy, data_dir):
  """Words only, then restoration and words from its encoder."""
  words = functools.partial(
    tasks.NameWords,
    model=functools.partial(
      models.build_word_classifier, base_filters=2, depth=3
    ),
    perturb=tiny_data.AddNoise,
  )
  restore = functools.partial(
    tasks.Restore,
    model=functools.partial(models.build_unet3d, base_filters=2, depth=3),
    perturb=tiny_data.AddNoise,
  )
  rows = tiny_data.train(
    tmp_path / 'words', strategy, data_dir, epochs=1, task=words
  )
  assert {'validation/accuracy', 'train/cross_entropy'} <= set(rows[0])
  assert 'train/mse' not in rows[0]
  rows = tiny_data.train(
    tmp_path / 'restore', strategy, data_dir, epochs=1, task=restore
  )
  assert {'train/mse', 'validation/perturbed_mse'} <= set(rows[0])
  assert 'train/accuracy' not in rows[0]

  for stage in ('words', 'restore'):
    # A learning rate of almost nothing: the encoder stays what it was.
    tiny_data.train(
      tmp_path / f'after_{stage}',
      strategy,
      data_dir,
      epochs=1,
      learning_rate=1e-12,
      start_from=str(tmp_path / stage),
    )
    before, _ = checkpoints.load_model(str(tmp_path / stage))
    after, _ = checkpoints.load_model(str(tmp_path / f'after_{stage}'))
    for one, other in zip(
      before.encoder.trainable_variables,
      after.encoder.trainable_variables,
      strict=True,
    ):
      np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-8)


def test_settings_are_checked(tmp_path, strategy, data_dir):
  with pytest.raises(errors.UserError, match=r'train\.epochs is 0'):
    tiny_data.make_settings(data_dir, epochs=0)
  with pytest.raises(errors.UserError, match=r'train\.precision is'):
    tiny_data.make_settings(data_dir, precision='double')
  with pytest.raises(errors.UserError, match='multiple of the 1 replicas'):
    tiny_data.train(tmp_path / 'new', strategy, data_dir, batch_size=0)
  assert not (tmp_path / 'new').exists()


def test_the_chief_writes(strategy):
  assert devices.is_chief(strategy)
