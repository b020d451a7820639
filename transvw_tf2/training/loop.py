"""The run: epochs, validation, checkpoints and reports around the steps.

Knows nothing of the model or the losses; the task and the steps do.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import functools
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import math
import os
import shutil
import time

from absl import logging
import gin
import numpy as np
import tensorflow as tf
import tqdm

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.training import assembly
from transvw_tf2.training import checkpoints
from transvw_tf2.training import damaged_data
from transvw_tf2.training import devices
from transvw_tf2.training import gin_files
from transvw_tf2.training import initial_weights
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import inspection
from transvw_tf2.training import interruption
from transvw_tf2.training import loss_sums
from transvw_tf2.training import reports
from transvw_tf2.training import settings as settings_lib
from transvw_tf2.training import summary

OPERATIVE_CONFIG_FILE = 'operative_config.gin'
_EXAMPLES_IN_PICTURE = 4
_EXAMPLES_IN_PROJECTOR = 256
# A look at the loss waits for the device.
_SECONDS_BETWEEN_LOOKS = 1.0


def train(
  workdir: str,
  strategy: tf.distribute.Strategy,
  settings: settings_lib.Settings,
  should_stop: Callable[[], bool] = lambda: False,
  parameters: Sequence[str] = (),
) -> list[dict[str, float]]:
  """Trains, or goes on where the same call was cut off.

  Args:
    workdir: folder of the run; made if it is missing.
    strategy: from `devices.make_strategy`.
    settings: of the run.
    should_stop: asked after each call of the steps.
    parameters: bindings of gin that the user gave; what the run does not use is
      told.

  Returns:
    The rows of history.csv, one per epoch.

  Raises:
    UserError: a setting or the data set is wrong, the workdir belongs to
      another run, is in use, or cannot be written, or the loss is not finite.
    Interrupted: should_stop said so; all is saved.
  """
  try:
    with _holding(workdir, strategy):
      run = assembly.assemble(workdir, strategy, settings)
      return _Loop(run, should_stop, parameters).go_on()
  except OSError as error:
    raise errors.UserError(
      f'--workdir {workdir} cannot be written ({error}): make room or give'
      ' another'
    ) from error
  except tf.errors.UnavailableError as error:
    raise errors.UserError(
      'another worker of the cluster is gone: start the same command on all of'
      ' them again, it goes on'
    ) from error


@contextlib.contextmanager
def _holding(workdir, strategy):
  """Holds the lock of a workdir; leaves none of a run that did not begin."""
  if not devices.is_chief(strategy):
    yield
    return
  is_new = not os.path.exists(workdir)
  with output_lock.hold(workdir):
    try:
      yield
    except errors.UserError:
      begun = os.path.exists(os.path.join(workdir, checkpoints.FOLDER))
      if is_new and not begun:
        shutil.rmtree(workdir, ignore_errors=True)
      raise


def say(line: str) -> None:
  """Prints a line; a run of days does not end because nobody listens."""
  with contextlib.suppress(OSError):  # such as a pipe that was closed
    print(line, flush=True)


class _Loop:
  """The epochs of a run."""

  def __init__(
    self,
    run: assembly.Run,
    should_stop: Callable[[], bool],
    parameters: Sequence[str],
  ):
    self._run = run
    self._parameters = parameters
    self._settings = run.settings
    self._progress = run.progress
    self._should_stop = should_stop
    self._any_worker = devices.AnyWorker(run.strategy)
    self._source = summary.describe_source()
    self._clock = time.monotonic()
    self._next_look = 0.0

  def go_on(self) -> list[dict[str, float]]:
    """Restores the latest checkpoint, if any, and runs the other epochs."""
    self._restore_or_begin()
    run, progress = self._run, self._progress
    run.freezing.apply(run.model, progress.epoch + 1)
    self._steps = run.make_steps()
    self._reports = reports.Reports(
      run.workdir if run.is_chief else None, progress.epoch
    )
    self._write_config()
    try:
      while (
        progress.epoch < self._settings.epochs and not run.early_stopping.over
      ):
        self._run_epoch_in_memory()
    except interruption.Interrupted:
      self._summarize('interrupted')
      raise
    finally:
      run.checkpoints.close()
    stopped = run.early_stopping.over
    if stopped:
      say(f'stopped early after epoch {progress.epoch}')
    self._summarize('early stopping' if stopped else 'last epoch')
    return self._reports.rows

  def _write_config(self):
    """Writes what gin gave, all of which has been asked for by now."""
    run, config = self._run, gin.operative_config_str()
    for parameter in gin_files.find_unused(self._parameters):
      logging.warning(
        '--gin_param "%s" sets nothing that this run uses, see %s',
        parameter,
        os.path.join(run.workdir, OPERATIVE_CONFIG_FILE),
      )
    self._reports.write_text('operative_config', config)
    if run.is_chief:
      output_file.write(
        os.path.join(run.workdir, OPERATIVE_CONFIG_FILE), config.encode()
      )

  def _restore_or_begin(self):
    run, progress = self._run, self._progress
    run.checkpoints.remove_leftovers()
    restored = run.checkpoints.restore()
    if not self._any_worker(bool(restored)):
      progress.accumulation = self._settings.accumulation
      # What it refuses must not leave a checkpoint behind.
      run.freezing.apply(run.model, 1)
      if self._settings.start_from:
        source = self._settings.start_from
        say(initial_weights.start_from(run.model, source))
      # What a run that lacks memory in its first step goes back to.
      self._save_latest()
    elif restored:
      say(
        f'resuming after epoch {progress.epoch}, step {progress.step},'
        f' from {restored}'
      )
    else:
      raise errors.UserError(
        f'--workdir {run.workdir} holds no checkpoint for this worker, but does'
        ' for another: put it on a file system that all workers share'
      )

  def _summarize(self, ended):
    run = self._run
    if run.is_chief:
      summary.write_summary(
        run.workdir,
        self._reports.rows,
        seconds=self._progress.seconds,
        ended=ended,
        best_metric=self._settings.best_metric,
        rising=self._settings.best_metric in run.task.rising_metrics,
        strategy=run.strategy,
        model=run.model,
        config=gin.operative_config_str(),
        source=self._source,
      )

  def _run_epoch_in_memory(self):
    """Runs an epoch; where memory is short, on smaller parts of the batch."""
    try:
      self._run_epoch()
    except tf.errors.ResourceExhaustedError as error:
      parts = self._more_parts(error)
      # The step may have changed some variables before it failed.
      restored = self._run.checkpoints.restore()
      self._progress.accumulation = parts
      self._steps = self._run.make_steps()
      logging.warning(
        'out of memory: train.accumulation is %d from now on, going on from %s',
        parts,
        restored,
      )

  def _more_parts(self, error) -> int:
    """Returns the next larger accumulation; raises UserError without one."""
    run, now = self._run, self._progress.accumulation
    # Workers would have to agree.
    if not devices.is_cluster(run.strategy):
      for parts in range(2 * now, run.replica_batch + 1):
        if run.replica_batch % parts == 0:
          return parts
    raise errors.UserError(
      f'{run.replica_batch // now} {run.data.volume}s at a time do not fit into'
      f' the memory of a device ({" ".join(error.message.split())[:120]}):'
      ' raise train.accumulation, or take a smaller network or train.precision'
    ) from error

  def _run_epoch(self):
    run = self._run
    start = time.monotonic()
    epoch = self._progress.epoch + 1
    if run.freezing.apply(run.model, epoch):
      self._steps = run.make_steps()
    first_step = self._progress.step
    with damaged_data.explain(run.data, schema.TRAIN):
      trained = self._train_epoch(epoch)
    steps = run.num_steps[schema.TRAIN] - first_step
    seconds = time.monotonic() - start
    # None is known where all steps had been done before it was cut off.
    speed = steps * self._settings.batch_size / seconds if steps else math.nan
    if run.own_statistics:
      self._steps.average_statistics()
    with damaged_data.explain(run.data, schema.VALIDATION):
      validated, totals = self._validate()
    if not math.isfinite(validated['loss']):
      # The last step broke the weights; they are not saved.
      raise self._not_finite(f'after epoch {epoch}')
    rate = float(run.optimizer.learning_rate.numpy())
    values = {
      **{f'train/{name}': value for name, value in trained.items()},
      **{f'validation/{name}': value for name, value in validated.items()},
      'learning_rate': rate,
      f'{run.data.volume}s_per_second': speed,
    }
    # First, for a row that is there too early is dropped on resuming.
    self._reports.write_epoch(epoch, values)
    self._end_epoch(epoch, validated, rate)
    if run.is_chief and epoch % self._settings.picture_epochs == 0:
      self._draw(epoch, totals)
    speed_text = f'{speed:.2f} {run.data.volume}s/s'
    say(_epoch_line(epoch, trained, validated, speed_text))

  def _end_epoch(self, epoch, validated, rate):
    """Takes the validation metrics of an epoch and saves."""
    run, progress = self._run, self._progress
    progress.epoch, progress.step, progress.sums = epoch, 0, {}
    progress.val_loss = validated['loss']
    name = self._settings.best_metric
    value = validated[name]
    if name in run.task.rising_metrics:
      value = -value
    # Not a number where it is not defined, such as the AUC of one class.
    if math.isnan(value):
      value = math.inf
    run.optimizer.learning_rate = run.schedule.next_rate(rate, epoch, value)
    run.early_stopping.update(value)
    # NaN before there is any, to which no value compares.
    if not value >= progress.best.get(name, math.nan):
      progress.best[name] = value
      run.checkpoints.save_best(epoch)
    self._save_latest()

  def _save_latest(self):
    progress = self._progress
    now = time.monotonic()
    progress.seconds += now - self._clock
    self._clock = now
    done = progress.epoch * self._run.num_steps[schema.TRAIN]
    self._run.checkpoints.save_latest(done + progress.step)

  def _train_epoch(self, epoch) -> dict[str, float]:
    """Runs the steps that are left of an epoch; returns means of the losses."""
    progress, settings = self._progress, self._settings
    num_steps = self._run.num_steps[schema.TRAIN]
    seed = self._run.seed(schema.TRAIN, epoch)
    batches = iter(self._distribute(schema.TRAIN, epoch, progress.step))
    sums = self._sums = loss_sums.LossSums(progress.sums)
    with self._bar(f'epoch {epoch}', num_steps, progress.step) as bar:
      while progress.step < num_steps:
        count = self._steps_in_call()
        values = self._call(batches, seed, count)
        sums.add_steps(values, progress.step)
        progress.step += count
        bar.update(count * settings.batch_size)
        self._look(bar)
        self._stop_if_asked()
        if (
          progress.step % settings.checkpoint_steps == 0
          and progress.step < num_steps
        ):
          self._save_within_epoch()
    self._check_finite()
    return {name: one / num_steps for name, one in sums.values().items()}

  def _bar(self, title, num_steps, step=0):
    return tqdm.tqdm(
      desc=title,
      total=num_steps * self._settings.batch_size,
      initial=step * self._settings.batch_size,
      unit=self._run.data.volume,
      disable=None,  # only on a terminal
      leave=False,
    )

  def _steps_in_call(self) -> int:
    """Returns steps until the end of the call, a checkpoint or the epoch."""
    step, settings = self._progress.step, self._settings
    return min(
      settings.steps_per_call,
      settings.checkpoint_steps - step % settings.checkpoint_steps,
      self._run.num_steps[schema.TRAIN] - step,
    )

  def _call(self, batches, seed, count):
    if count == 1:
      return self._steps.train(next(batches), seed)
    return self._steps.train_several(batches, seed, tf.constant(count))

  def _look(self, bar):
    """Shows the loss now and then, and stops where it is not finite."""
    now = time.monotonic()
    if now < self._next_look:
      return
    self._check_finite()
    mean = self._sums.values()['loss'] / self._progress.step
    bar.set_postfix(loss=f'{mean:.4f}')
    self._next_look = now + _SECONDS_BETWEEN_LOOKS

  def _check_finite(self):
    step = self._sums.first_not_finite()
    if step is not None:
      raise self._not_finite(
        f'in epoch {self._progress.epoch + 1}, step {step + 1}'
      )

  def _not_finite(self, when) -> errors.UserError:
    workdir = self._run.workdir
    hint = f', or train.start_from = "{workdir}", its best weights'
    return errors.UserError(
      f'the loss is not finite {when}: give a lower train.learning_rate and'
      f' another --workdir{hint if self._progress.epoch else ""}'
    )

  def _save_within_epoch(self):
    self._check_finite()
    self._progress.sums = self._sums.values()
    if self._run.own_statistics:
      self._steps.average_statistics()
    self._save_latest()

  def _stop_if_asked(self):
    if not self._any_worker(self._should_stop()):
      return
    self._save_within_epoch()
    progress = self._progress
    raise interruption.Interrupted(
      f'stopped in epoch {progress.epoch + 1} after step {progress.step} and'
      f' saved in {self._run.workdir}: the same command goes on'
    )

  def _validate(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns means over all of validation, always perturbed alike; totals."""
    seed = self._run.seed(schema.VALIDATION)
    sums = loss_sums.LossSums()
    num_steps = self._run.num_steps[schema.VALIDATION]
    with self._bar('validation', num_steps) as bar:
      for batch in self._distribute(schema.VALIDATION):
        sums.add(self._steps.evaluate(batch, seed))
        bar.update(self._settings.batch_size)
        self._stop_if_asked()
    totals = sums.values()
    weight = totals.pop('weight')
    task = self._run.task
    means = {name: totals.pop(name) / weight for name in task.metrics}
    return means | task.summarize(totals), totals

  def _distribute(self, split, epoch=0, skip_steps=0):
    run, settings = self._run, self._settings
    make = functools.partial(
      input_pipeline.make_dataset,
      run.data,
      split,
      settings.batch_size,
      seed=settings.seed,
      epoch=epoch,
      shuffle_buffer=settings.shuffle_buffer,
      interleave=settings.interleave,
      cache=settings.cache,
      skip_steps=skip_steps,
      map_batch=(
        functools.partial(self._steps.add_inputs, seed=run.seed(split, epoch))
        if settings.inputs_in_pipeline
        else None
      ),
    )
    return run.strategy.distribute_datasets_from_function(
      lambda context: make(input_context=context)
    )

  def _draw(self, epoch, totals):
    """Writes pictures of some validation examples and of all of them."""
    run = self._run
    for title, figure in run.task.figures(totals).items():
      self._reports.write_figure(epoch, title, figure)
    pictures, embeddings, labels = inspection.inspect(
      run.data,
      self._steps,
      run.task,
      run.seed(schema.VALIDATION),
      at_a_time=run.replica_batch // self._progress.accumulation,
      most=_EXAMPLES_IN_PROJECTOR,
    )
    self._reports.write_slices(
      epoch,
      {title: one[:_EXAMPLES_IN_PICTURE] for title, one in pictures.items()},
    )
    if embeddings is not None:
      self._reports.write_projector(
        embeddings, labels, next(iter(pictures.values()))
      )


def _epoch_line(epoch, trained, validated, speed) -> str:
  def listed(values):
    return ', '.join(f'{name} {value:.4f}' for name, value in values.items())

  return (
    f'epoch {epoch}: {speed}; train {listed(trained)};'
    f' validation {listed(validated)}'
  )
