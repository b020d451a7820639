"""The run: epochs, validation, checkpoints and reports around the steps.

Knows nothing of the model or the losses; the task and the steps do.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import math
import os
import time

import gin
import keras
import tensorflow as tf
import tqdm

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.training import checkpoints
from transvw_tf2.training import devices
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import reports
from transvw_tf2.training import schedules
from transvw_tf2.training import step as step_lib
from transvw_tf2.training import tasks

OPERATIVE_CONFIG_FILE = 'operative_config.gin'
_EXAMPLES_IN_PICTURE = 4


@gin.configurable('train', module='training')
@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a run, `train` in gin files; the defaults are the paper's.

  Attributes:
    data_dir: a built data set, see `input_pipeline.find_data_dir`.
    task: makes the task.
    batch_size: examples per step over all replicas of all workers.
    epochs: at most so many.
    learning_rate: of Adam, at the beginning.
    schedule: makes what changes the learning rate.
    early_stopping: makes what ends the run.
    seed: decides weights, order of the examples and perturbations.
    jit_compile: see `step.compiled_part`.
    synchronized_batch_norm: see `step.resolve_batch_norm`.
    shuffle_buffer: see `input_pipeline.make_dataset`.
    checkpoint_steps: steps between checkpoints within an epoch.
    keep_checkpoints: latest checkpoints kept.
    picture_epochs: epochs between pictures in TensorBoard.
  """

  data_dir: str = ''
  task: Callable[[], tasks.Pretrain | tasks.Autoencoder] = tasks.Pretrain
  batch_size: int = 8
  epochs: int = 10000
  learning_rate: float = 1e-3
  schedule: Callable[[], tf.Module] = schedules.ReduceOnPlateau
  early_stopping: Callable[[], tf.Module] = schedules.EarlyStopping
  seed: int = 1
  jit_compile: bool | str = step_lib.AUTO
  synchronized_batch_norm: bool | None = None
  shuffle_buffer: int = 1024
  checkpoint_steps: int = 1000
  keep_checkpoints: int = 3
  picture_epochs: int = 1

  def __post_init__(self):
    for name in (
      *('epochs', 'checkpoint_steps', 'keep_checkpoints', 'picture_epochs'),
    ):
      value = getattr(self, name)
      if value < 1:
        raise errors.UserError(f'train.{name} is {value}, wanted at least 1')


def train(
  workdir: str, strategy: tf.distribute.Strategy, settings: Settings
) -> list[dict[str, float]]:
  """Trains, or goes on where the same call was cut off.

  Args:
    workdir: folder of the run; made if it is missing.
    strategy: from `devices.make_strategy`.
    settings: of the run.

  Returns:
    The rows of history.csv, one per epoch.

  Raises:
    UserError: a setting or the data set is wrong, the workdir belongs to
      another run, or the loss is not finite.
  """
  return _Run(workdir, strategy, settings).go_on()


class _Run:
  """A run: what it is made of, and its epochs."""

  def __init__(self, workdir, strategy, settings):
    self._workdir = workdir
    self._strategy = strategy
    self._settings = settings
    self._chief = devices.is_chief(strategy)
    # Same seed, same initial weights.
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
      self._task = settings.task()
    self._data = input_pipeline.open_data(
      settings.data_dir, self._task.features
    )
    devices.check_batch_size(settings.batch_size, strategy.num_replicas_in_sync)
    self._num_steps = {
      split: input_pipeline.steps_per_epoch(
        self._data, split, settings.batch_size
      )
      for split in (schema.TRAIN, schema.VALIDATION)
    }
    self._task.prepare(self._data)
    self._build()
    self._progress = checkpoints.Progress()
    self._describe()
    self._checkpoints = self._open_checkpoints()

  def _build(self):
    """Makes model, optimizer, steps and schedules."""
    settings = self._settings
    synchronized = step_lib.resolve_batch_norm(
      self._strategy, settings.jit_compile, settings.synchronized_batch_norm
    )
    with self._strategy.scope():
      self._model = self._task.build_model(synchronized)
      # Called, not only built: layers may make variables in their first call.
      self._call_once()
      self._optimizer = keras.optimizers.Adam(
        settings.learning_rate, epsilon=1e-7
      )
      self._optimizer.build(self._model.trainable_variables)
    self._schedule = settings.schedule()
    self._early_stopping = settings.early_stopping()
    self._steps = step_lib.Steps(
      strategy=self._strategy,
      model=self._model,
      optimizer=self._optimizer,
      task=self._task,
      batch_size=settings.batch_size,
      jit_compile=settings.jit_compile,
    )
    self._average_statistics = (
      self._strategy.num_replicas_in_sync > 1 and not synchronized
    )

  def _call_once(self):
    try:
      self._model(tf.zeros((1, *self._data.shape, 1)))
    except ValueError as error:
      raise errors.UserError(
        f'data set {self._data.data_dir} does not fit the model: {error}'
      ) from error

  def _describe(self):
    """Writes what the run is, or refuses the workdir of another run."""
    if not self._chief:
      return
    try:
      os.makedirs(self._workdir, exist_ok=True)
      checkpoints.write_description(
        self._workdir,
        {
          'task': type(self._task).__name__,
          'model': self._serialize_model(),
          **self._task.describe(),
          'volume': self._data.volume,
          'shape': self._data.shape,
          'examples': self._data.sizes,
          'batch_size': self._settings.batch_size,
          'seed': self._settings.seed,
        },
      )
      path = os.path.join(self._workdir, OPERATIVE_CONFIG_FILE)
      with open(path, 'w', encoding='utf-8') as file:
        file.write(gin.operative_config_str())
    except OSError as error:
      raise errors.UserError(
        f'--workdir {self._workdir} cannot be written ({error}): give another'
      ) from error

  def _serialize_model(self):
    # Unsynchronised, so that a run can go on with other devices.
    model = self._task.build_model(False)
    return keras.saving.serialize_keras_object(model)

  def _open_checkpoints(self):
    # Every worker has to save, but only the chief's copy counts.
    own = os.path.join(self._workdir, '.worker', str(os.getpid()))
    return checkpoints.Checkpoints(
      self._workdir,
      model=self._model,
      progress=self._progress,
      keep=self._settings.keep_checkpoints,
      writes_to=None if self._chief else own,
      optimizer=self._optimizer,
      schedule=self._schedule,
      early_stopping=self._early_stopping,
    )

  def go_on(self) -> list[dict[str, float]]:
    """Restores the latest checkpoint, if any, and runs the other epochs."""
    restored = self._checkpoints.restore()
    progress = self._progress
    if restored:
      print(
        f'resuming after epoch {progress.epoch}, step {progress.step},'
        f' from {restored}'
      )
    self._reports = reports.Reports(
      self._workdir if self._chief else None, progress.epoch
    )
    self._reports.write_text('operative_config', gin.operative_config_str())
    while (
      progress.epoch < self._settings.epochs and not self._early_stopping.over
    ):
      self._run_epoch()
    if self._early_stopping.over:
      print(f'stopped early after epoch {progress.epoch}')
    return self._reports.rows

  def _run_epoch(self):
    start = time.monotonic()
    epoch = self._progress.epoch + 1
    first_step = self._progress.step
    trained = self._train_epoch(epoch)
    steps = self._num_steps[schema.TRAIN] - first_step
    speed = steps * self._settings.batch_size / (time.monotonic() - start)
    if self._average_statistics:
      self._steps.average_statistics()
    validated = self._validate()
    rate = float(self._optimizer.learning_rate.numpy())
    values = {
      **{f'train/{name}': value for name, value in trained.items()},
      **{f'validation/{name}': value for name, value in validated.items()},
      'learning_rate': rate,
      f'{self._data.volume}s_per_second': speed,
    }
    self._end_epoch(epoch, validated['loss'], rate)
    self._reports.write_epoch(epoch, values)
    if epoch % self._settings.picture_epochs == 0 and self._chief:
      self._reports.write_slices(epoch, self._picture_rows())
    speed_text = f'{speed:.2f} {self._data.volume}s/s'
    print(_epoch_line(epoch, trained, validated, speed_text), flush=True)

  def _end_epoch(self, epoch, val_loss, rate):
    """Takes the validation loss of an epoch and saves."""
    progress = self._progress
    progress.epoch, progress.step, progress.sums = epoch, 0, {}
    progress.val_loss = val_loss
    self._optimizer.learning_rate = self._schedule.next_rate(
      rate, epoch, val_loss
    )
    self._early_stopping.update(val_loss)
    if val_loss < progress.best_val_loss:
      progress.best_val_loss = val_loss
      self._checkpoints.save_best(epoch)
    self._save_latest()

  def _save_latest(self):
    done = self._progress.epoch * self._num_steps[schema.TRAIN]
    self._checkpoints.save_latest(done + self._progress.step)

  def _train_epoch(self, epoch) -> dict[str, float]:
    """Runs the steps that are left of an epoch; returns means of the losses."""
    progress, settings = self._progress, self._settings
    num_steps = self._num_steps[schema.TRAIN]
    seed = step_lib.stream_seed(settings.seed, step_lib.TRAIN_STREAM, epoch)
    batches = self._distribute(schema.TRAIN, epoch, skip_steps=progress.step)
    sums = _Sums(progress.sums)
    with tqdm.tqdm(
      desc=f'epoch {epoch}',
      total=num_steps * settings.batch_size,
      initial=progress.step * settings.batch_size,
      unit=self._data.volume,
      disable=None,  # only on a terminal
      leave=False,
    ) as bar:
      for batch in batches:
        sums.add(self._steps.train(batch, seed))
        progress.step += 1
        bar.update(settings.batch_size)
        if (
          progress.step % settings.checkpoint_steps == 0
          and progress.step < num_steps
        ):
          progress.sums = sums.values()
          self._check_finite(progress.sums)
          self._save_latest()
    self._check_finite(sums.values())
    return {name: one / num_steps for name, one in sums.values().items()}

  def _check_finite(self, sums):
    if not all(math.isfinite(value) for value in sums.values()):
      raise errors.UserError(
        f'the loss is not finite in epoch {self._progress.epoch + 1} by step'
        f' {self._progress.step}: lower train.learning_rate; the last good'
        f' checkpoint in {self._workdir} is kept'
      )

  def _validate(self) -> dict[str, float]:
    """Returns means over all of validation, always perturbed alike."""
    seed = step_lib.stream_seed(
      self._settings.seed, step_lib.VALIDATION_STREAM, 0
    )
    sums = _Sums()
    for batch in self._distribute(schema.VALIDATION, 0):
      sums.add(self._steps.evaluate(batch, seed))
    totals = sums.values()
    weight = totals.pop('weight')
    return {name: total / weight for name, total in totals.items()}

  def _distribute(self, split, epoch, skip_steps=0):
    make = functools.partial(
      input_pipeline.make_dataset,
      self._data,
      split,
      self._settings.batch_size,
      seed=self._settings.seed,
      epoch=epoch,
      shuffle_buffer=self._settings.shuffle_buffer,
    )

    def make_for_worker(context):
      dataset = make(input_context=context)
      # An element is a batch of one replica.
      replicas = context.num_replicas_in_sync // context.num_input_pipelines
      return dataset.skip(skip_steps * replicas)

    return self._strategy.distribute_datasets_from_function(make_for_worker)

  def _picture_rows(self):
    dataset = input_pipeline.make_dataset(
      self._data, schema.VALIDATION, _EXAMPLES_IN_PICTURE
    )
    batch = next(iter(dataset))
    seed = step_lib.stream_seed(
      self._settings.seed, step_lib.VALIDATION_STREAM, 0
    )
    return self._steps.draw_pictures(batch, seed)


class _Sums:
  """Adds up the losses of steps without waiting for the device."""

  def __init__(self, initial: Mapping[str, float] | None = None):
    self._totals = {
      name: tf.constant(value, tf.float64)
      for name, value in (initial or {}).items()
    }

  def add(self, values: Mapping[str, tf.Tensor]) -> None:
    for name, value in values.items():
      value = tf.cast(value, tf.float64)
      self._totals[name] = self._totals.get(name, 0.0) + value

  def values(self) -> dict[str, float]:
    return {name: float(total) for name, total in self._totals.items()}


def _epoch_line(epoch, trained, validated, speed) -> str:
  def listed(values):
    return ', '.join(f'{name} {value:.4f}' for name, value in values.items())

  return (
    f'epoch {epoch}: {speed}; train {listed(trained)};'
    f' validation {listed(validated)}'
  )
