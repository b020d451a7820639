"""Single runs of a transfer study: fine-tune, measure on the test split."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import glob
import hashlib
import json
import math
import os
import re
import shutil
import sys
import threading
import time

import keras
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import devices
from transvw_tf2.training import evaluation_report
from transvw_tf2.training import gin_files
from transvw_tf2.training import label_fraction
from transvw_tf2.training import loop
from transvw_tf2.training import settings
from transvw_tf2.training import summary

SCRATCH = 'scratch'
LOG_FILE = 'log.txt'
_MADE_BY = 'tfds build luna16_nodules or labelled_scans'
_METRICS = {'auc': 'AUC', 'iou': 'IoU'}


@dataclasses.dataclass(frozen=True)
class Task:
  """A target task.

  Attributes:
    data_dir: of its data set.
    gin_file: of its fine-tuning.
    metric: that the study compares.
  """

  data_dir: str
  gin_file: str
  metric: str


def open_task(path: str) -> Task:
  """Returns the task of a data set: segmentation of masks, or classification.

  Args:
    path: of the data set, see `built_data.find_data_dir`.

  Raises:
    UserError: there is no data set of a target task, or one of its splits has
      no example.
  """
  data_dir = built_data.find_data_dir(path, _MADE_BY)
  info = built_data.open_builder(data_dir).info
  for feature, gin_file, metric in (
    ('mask', 'gin/runs/finetune_segmentation.gin', 'iou'),
    ('label', 'gin/runs/finetune_classification.gin', 'auc'),
  ):
    if feature in info.features:
      _check_splits(data_dir, info.splits)
      return Task(data_dir, gin_file, metric)
  raise errors.UserError(
    f'data set {data_dir} has neither labels nor masks: wanted one of'
    f' {_MADE_BY}'
  )


def _check_splits(data_dir, splits) -> None:
  # A run would miss the test split only when it has trained.
  for name in ('train', 'validation', 'test'):
    if name not in splits or not splits[name].num_examples:
      raise errors.UserError(
        f'data set {data_dir} has no example in split {name}: a study wants'
        ' some in train, validation and test'
      )


def title(task: str, metric: str) -> str:
  """Returns what is measured, for people."""
  return f'{task.replace("_", " ")}, {_METRICS[metric]}'


@dataclasses.dataclass(frozen=True)
class Run:
  """One network that is fine-tuned.

  Attributes:
    task: its name.
    init: what its first weights are called.
    fraction: of the training patients whose labels are used.
    seed: decides weights, order and which patients these are: the same for all
      inits, which makes them comparable in pairs.
  """

  task: str
  init: str
  fraction: float
  seed: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """What all runs of a study share.

  Attributes:
    tasks: by name.
    starts: workdir or .keras file by init; SCRATCH has none.
    parameters: gin bindings for all runs, or, as NAME:BINDING, for those of one
      task.
    folder: of the study.
    learning_rates: by task, that every run tries: the network with the best
      metric of validation is measured. A task without any has that of its
      bindings.
  """

  tasks: dict[str, Task]
  starts: dict[str, str]
  parameters: Sequence[str]
  folder: str
  learning_rates: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )

  def parameters_of(self, task: str) -> list[str]:
    """Returns the gin bindings for a task, its own ones last."""
    shared, own = [], []
    for text in self.parameters:
      name, colon, binding = text.partition(':')
      if colon and name in self.tasks:
        if name == task:
          own.append(binding)
      else:
        shared.append(text)
    return [*shared, *own]

  def folder_of(self, run: Run) -> str:
    """Returns the folder of a run."""
    return os.path.join(
      self.folder,
      'runs',
      run.task,
      run.init,
      f'fraction_{run.fraction:g}',
      f'seed_{run.seed}',
    )

  def workdir(self, run: Run, learning_rate: float) -> str:
    """Returns the folder of the network of a run with a learning rate."""
    return os.path.join(self.folder_of(run), f'learning_rate_{learning_rate:g}')


def check_parameters(plan: Plan) -> None:
  """Checks the gin bindings of all tasks; none is in force afterwards.

  Raises:
    UserError: one is wrong, or of what the study decides itself.
  """
  for name in plan.tasks:
    parameters = plan.parameters_of(name)
    for text in parameters:
      wrong = re.match(
        r'\s*(?:\w+[./])*train\.(data_dir|start_from|label_fraction|seed)\s*=',
        text,
      )
      if wrong:
        raise errors.UserError(
          f'--gin_param {text!r}: the study decides train.{wrong[1]} of'
          f' {name} itself, leave it out'
        )
    try:
      gin_files.parse([plan.tasks[name].gin_file], parameters, forget=True)
      settings.Settings()
    finally:
      gin_files.forget()


def fingerprints(plan: Plan) -> dict[str, str]:
  """Returns a text for each data set and start, another once it changed.

  Of the names, lengths and times of change of their files: contents may be
  hundreds of GB.
  """
  paths = {f'data {name}': task.data_dir for name, task in plan.tasks.items()}
  for name, path in plan.starts.items():
    if os.path.isdir(path):
      path = os.path.join(path, checkpoints.FOLDER, checkpoints.BEST)
    paths[f'init {name}'] = path
  return {name: _fingerprint(path) for name, path in paths.items()}


def _fingerprint(path: str) -> str:
  digest = hashlib.sha256()
  files = glob.glob(os.path.join(glob.escape(path), '**'), recursive=True)
  for file in sorted(files) if os.path.isdir(path) else [path]:
    # Not the list of checkpoints, which is mended now and then.
    if os.path.isfile(file) and os.path.basename(file) != 'checkpoint':
      known = os.stat(file)
      name = os.path.relpath(file, path)
      digest.update(f'{name} {known.st_size} {known.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]


def check_labels(plan: Plan, runs: Sequence[Run]) -> None:
  """Checks that no run would have to learn a class that it has no example of.

  Nor be measured by one: the test split, and validation where it chooses among
  learning rates, need examples of each class too.

  Raises:
    UserError: one would.
  """
  for name, task in plan.tasks.items():
    if task.metric != 'auc':
      continue
    choices = {(run.fraction, run.seed) for run in runs if run.task == name}
    if not choices:
      continue
    data = built_data.open_data(task.data_dir, built_data.CUBES_AND_LABELS)
    label_fraction.check(data, sorted(choices))
    label_fraction.check_split(data, schema.TEST)
    if len(plan.learning_rates.get(name, ())) > 1:
      label_fraction.check_split(data, schema.VALIDATION)


def begin_process(parent: int, processes: int) -> None:
  """Shares the cores, and makes this process end when its parent is gone.

  Args:
    parent: its process id.
    processes: how many there are.
  """
  tf.config.threading.set_intra_op_parallelism_threads(
    max(1, os.cpu_count() // processes)
  )

  def watch():
    while os.getppid() == parent:
      time.sleep(1.0)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def run_in_process(plan: Plan, run: Run) -> list[dict[str, object]]:
  """Calls `train_and_measure` in a process that `begin_process` began.

  What it prints goes to LOG_FILE in the folder of the run.
  """
  os.makedirs(plan.folder_of(run), exist_ok=True)
  sys.stdout.flush()
  with open(
    os.path.join(plan.folder_of(run), LOG_FILE), 'a', encoding='utf-8'
  ) as log:
    # Not sys.stderr alone: loggers keep the one that they began with.
    for stream in (sys.stdout, sys.stderr):
      os.dup2(log.fileno(), stream.fileno())
  return train_and_measure(plan, run)


def train_and_measure(plan: Plan, run: Run) -> list[dict[str, object]]:
  """Trains a network with each learning rate and measures the best.

  Goes on where it was cut off. The best is that with the highest metric of
  validation at its best epoch; the others never see the test split.

  Args:
    plan: of the study.
    run: the start, the labels and the seed.

  Returns:
    The rows of the study's table, a network each: the fields of the run,
    `learning_rate`, `epochs`, `best_epoch` (as `train.best_metric` has it),
    `metric`, `validation` (of the metric at that epoch), `value` (of the metric
    on the test split; NaN for all networks but the best) and `seconds`.

  Raises:
    UserError: a setting or the data is wrong.
  """
  try:
    rows = [
      _train(plan, run, bindings)
      for bindings in _learning_rate_bindings(plan, run)
    ]
    _measure(plan, run, _best(rows))
  except errors.UserError as error:
    raise errors.UserError(f'{describe(run)}: {error}') from error
  return rows


def _learning_rate_bindings(plan, run) -> list[list[str]]:
  rates = plan.learning_rates.get(run.task)
  if not rates:
    return [[]]
  return [[f'train.learning_rate = {rate!r}'] for rate in rates]


def _train(plan, run, bindings) -> dict[str, object]:
  """Trains a network; returns its row."""
  task = plan.tasks[run.task]
  keras.backend.clear_session()
  gin_files.parse(
    [task.gin_file],
    [
      'train.picture_epochs = 1000000',
      *plan.parameters_of(run.task),
      *bindings,
      f'train.data_dir = {task.data_dir!r}',
      f'train.start_from = {plan.starts.get(run.init, "")!r}',
      f'train.label_fraction = {run.fraction!r}',
      f'train.seed = {run.seed}',
    ],
    forget=True,
  )
  training = settings.Settings()
  workdir = plan.workdir(run, training.learning_rate)
  history = loop.train(workdir, devices.make_strategy('all'), training)
  _, description = checkpoints.load_model(workdir)
  epoch = description['epoch']
  return {
    **dataclasses.asdict(run),
    'learning_rate': training.learning_rate,
    'epochs': len(history),
    'best_epoch': epoch,
    'metric': task.metric,
    'validation': history[epoch - 1][f'validation/{task.metric}'],
    'value': math.nan,
    'seconds': round(_read_seconds(workdir), 1),
  }


def _read_seconds(workdir) -> float:
  """Returns what a training took, all calls of one that was cut off."""
  with open(
    os.path.join(workdir, summary.SUMMARY_FILE), encoding='utf-8'
  ) as file:
    return json.load(file)['seconds']


def _best(rows) -> dict[str, object]:
  """Returns the row of the network that is best in validation."""
  if len(rows) > 1 and any(math.isnan(row['validation']) for row in rows):
    raise errors.UserError(
      f'the {rows[0]["metric"]} of validation is not defined, so that no'
      ' learning rate can be chosen by it: validation must have examples of'
      ' each class'
    )
  return max(rows, key=lambda row: row['validation'])


def _measure(plan, run, row) -> None:
  """Fills in the `value` of the network of a row."""
  workdir = plan.workdir(run, row['learning_rate'])
  metrics = evaluation_report.evaluate(
    workdir,
    plan.tasks[run.task].data_dir,
    os.path.join(workdir, 'test'),
    resamples=0,
  )
  row['value'] = metrics[row['metric']].value


def remove_weights(plan: Plan, run: Run) -> None:
  """Removes the checkpoints of a run; its histories and reports stay."""
  for entry in os.scandir(plan.folder_of(run)):
    path = os.path.join(entry.path, checkpoints.FOLDER)
    if os.path.isdir(path):
      shutil.rmtree(path)


def describe(run: Run) -> str:
  """Returns a run in words."""
  return (
    f'{run.task}, {run.init}, {100 * run.fraction:g} % of the labels, seed'
    f' {run.seed}'
  )
