"""Makes what a run consists of: data, model, optimizer, checkpoints."""

from collections.abc import Callable
import dataclasses
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import os

import keras
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.models import blocks
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import devices
from transvw_tf2.training import freezing as freezing_lib
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import label_fraction
from transvw_tf2.training import settings as settings_lib
from transvw_tf2.training import step as step_lib
from transvw_tf2.training import tasks


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run consists of.

  Attributes:
    workdir: its folder.
    strategy: its devices.
    settings: of the run.
    is_chief: whether this process writes the results.
    task: what is trained.
    data: what it is trained on.
    num_steps: steps in an epoch, by split.
    model: built, in the strategy's scope.
    optimizer: built on the model's variables, frozen ones too.
    freezing: which of them learn.
    schedule: of the learning rate.
    early_stopping: ends the run.
    own_statistics: whether each replica normalises for itself.
    progress: how far it is.
    checkpoints: of all that changes.
  """

  workdir: str
  strategy: tf.distribute.Strategy
  settings: settings_lib.Settings
  is_chief: bool
  task: tasks.Task
  data: built_data.Data
  num_steps: dict[str, int]
  model: keras.Model
  optimizer: keras.optimizers.Optimizer
  freezing: freezing_lib.Freezing
  schedule: tf.Module
  early_stopping: tf.Module
  own_statistics: bool
  progress: checkpoints.Progress
  checkpoints: checkpoints.Checkpoints

  @property
  def replica_batch(self) -> int:
    """Examples per step on one replica."""
    return self.settings.batch_size // self.strategy.num_replicas_in_sync

  def make_steps(self) -> step_lib.Steps:
    """Returns the steps, with the accumulation of the progress."""
    return step_lib.Steps(
      strategy=self.strategy,
      model=self.model,
      optimizer=self.optimizer,
      task=self.task,
      batch_size=self.settings.batch_size,
      accumulation=self.progress.accumulation,
      jit_compile=self.settings.jit_compile,
      decorrelation_weight=self.settings.decorrelation_weight,
    )

  def seed(self, split: str, epoch: int = 0) -> tf.Tensor:
    """Returns the int32 (2,) seed of an epoch; validation's is always 0."""
    if split == schema.TRAIN:
      stream = step_lib.TRAIN_STREAM
    else:
      stream, epoch = step_lib.VALIDATION_STREAM, 0
    return step_lib.stream_seed(self.settings.seed, stream, epoch)


def assemble(
  workdir: str,
  strategy: tf.distribute.Strategy,
  settings: settings_lib.Settings,
) -> Run:
  """Makes a run, and its folder with the description of it.

  Args:
    workdir: folder of the run; made if it is missing.
    strategy: from `devices.make_strategy`.
    settings: of the run.

  Raises:
    UserError: a setting or the data set is wrong, or the workdir belongs to
      another run.
  """
  output_file.check_no_pattern('--workdir', workdir)
  replicas = strategy.num_replicas_in_sync
  devices.check_batch_size(settings.batch_size, replicas)
  step_lib.check_accumulation(
    settings.batch_size, replicas, settings.accumulation
  )
  devices.check_precision(settings.precision, strategy)
  synchronized = step_lib.resolve_batch_norm(
    strategy, settings.jit_compile, settings.synchronized_batch_norm
  )
  # Same seed, same initial weights.
  keras.utils.set_random_seed(settings.seed)
  with strategy.scope():
    task = _make('task', settings.task)
  state = {
    name: _make(name, getattr(settings, name))
    for name in ('schedule', 'early_stopping')
  }
  freezing = _make('freezing', settings.freezing)
  if settings.best_metric not in ('loss', *task.rising_metrics):
    raise errors.UserError(
      f'train.best_metric is {settings.best_metric!r}, wanted one of'
      f' {", ".join(("loss", *task.rising_metrics))} for'
      f' {type(task).__name__}'
    )
  if task.augments and settings.inputs_in_pipeline:
    raise errors.UserError(
      f'train.inputs_in_pipeline is True, but {type(task).__name__} changes'
      ' cubes within the step (mirror, crop): leave it out'
    )
  data = built_data.open_data(settings.data_dir, task.features)
  data = label_fraction.select(data, settings.label_fraction, settings.seed)
  num_steps = {
    split: input_pipeline.steps_per_epoch(data, split, settings.batch_size)
    for split in (schema.TRAIN, schema.VALIDATION)
  }
  task.prepare(data)
  with strategy.scope():
    model = task.build_model(synchronized, settings.dtype_policy)
    _call_once(model, data, task)
    if settings.batch_norm_momentum is not None:
      blocks.set_batch_norm_momentum(model, settings.batch_norm_momentum)
    optimizer = _make_optimizer(model, settings)
  is_chief = devices.is_chief(strategy)
  if is_chief:
    classes = {name: type(one).__name__ for name, one in state.items()}
    _describe(workdir, settings, task, data, classes)
  progress = checkpoints.Progress()
  return Run(
    workdir=workdir,
    strategy=strategy,
    settings=settings,
    is_chief=is_chief,
    task=task,
    data=data,
    num_steps=num_steps,
    model=model,
    optimizer=optimizer,
    freezing=freezing,
    own_statistics=replicas > 1 and not synchronized,
    progress=progress,
    checkpoints=checkpoints.Checkpoints(
      workdir,
      model=model,
      progress=progress,
      optimizer=optimizer,
      keep=settings.keep_checkpoints,
      worker=None if is_chief else devices.worker_name(strategy),
      **state,
    ),
    **state,
  )


def _make(name: str, maker: Callable):
  """Calls what makes a part of a run; what gin gave it may be of any kind."""
  try:
    return maker()
  # Gin raises the last where a setting without a default is missing.
  except (TypeError, ValueError, RuntimeError) as error:
    raise errors.UserError(
      f'train.{name}, {getattr(maker, "__name__", maker)}, cannot be made'
      f' ({errors.without_call(error)}): change its settings'
    ) from error


def _call_once(model, data, task):
  # Called, not only built: layers may make variables in their first call.
  shape = task.part_shape(data.shape)
  try:
    outputs = model(tf.zeros((1, *shape, 1)))
  except ValueError as error:
    raise errors.UserError(
      f'{data.volume}s of {tuple(shape)} voxels of data set {data.data_dir} do'
      f' not fit the model: {error}'
    ) from error
  found = tuple(outputs) if isinstance(outputs, dict) else ()
  if not set(task.outputs) <= set(found):
    name = type(task).__name__
    raise errors.UserError(
      f'{name} needs a network that gives {" and ".join(task.outputs)}, not'
      f' {" and ".join(found) or "one tensor"}: leave out {name}.model, or give'
      ' another'
    )


def _make_optimizer(model, settings):
  optimizer = keras.optimizers.Adam(settings.learning_rate, epsilon=1e-7)
  if settings.precision == 'float16':
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
  # On variables that exist: it could not make its own inside a step.
  optimizer.build(model.trainable_variables)
  return optimizer


def _describe(workdir, settings, task, data, classes):
  """Writes what the run is, or refuses the workdir of another run."""
  # Unsynchronised and in float32, so that a run can go on with other devices
  # and what is exported computes in float32.
  model = keras.saving.serialize_keras_object(task.build_model(False))
  os.makedirs(workdir, exist_ok=True)
  checkpoints.write_description(
    workdir,
    {
      'task': type(task).__name__,
      # Before the model, for the first that differs is told.
      **task.describe(),
      'model': model,
      'volume': data.volume,
      'shape': data.shape,
      'examples': data.sizes | data.selected,
      'batch_size': settings.batch_size,
      'accumulation': settings.accumulation,
      'precision': settings.precision,
      # Schedule and early stopping compare with the best of it so far.
      'best_metric': settings.best_metric,
      # Counters, where they have any, are in the checkpoint.
      **classes,
      'seed': settings.seed,
      # A run that goes on has those of its checkpoint, whatever is asked for.
      'learning_rate': settings.learning_rate,
      'start_from': settings.start_from,
    },
  )
