"""Settings of a training run, `train` in gin files."""

from collections.abc import Callable
import dataclasses
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import math
import numbers
from typing import Any

import gin
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.training import freezing as freezing_lib
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import schedules
from transvw_tf2.training import step
from transvw_tf2.training import target_tasks  # noqa: F401, for gin
from transvw_tf2.training import tasks

# Keras dtype policies by what people call them.
PRECISIONS = {
  'float32': 'float32',
  'bfloat16': 'mixed_bfloat16',
  'float16': 'mixed_float16',
}
# What values of an annotated type are, and how to say so. Of the others, such
# as jit_compile, those that use them check the values.
_KINDS = {
  int: (numbers.Integral, 'a whole number'),
  float: (numbers.Real, 'a number'),
  float | None: (numbers.Real | None, 'a number or None'),
  bool: (bool, 'True or False'),
  bool | None: (bool | None, 'True, False or None'),
  str: (str, 'text in quotes'),
}
_BOOLEANS = (bool, bool | None)
_COUNTS = (
  *('epochs', 'accumulation', 'steps_per_call', 'checkpoint_steps'),
  *('keep_checkpoints', 'picture_epochs', 'shuffle_buffer'),
)


@gin.configurable('train', module='training')
@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a run, `train` in gin files; the defaults are the paper's.

  Attributes:
    data_dir: a built data set, see `built_data.find_data_dir`.
    task: makes the task.
    start_from: earlier run or file whose weights the network begins with, see
      `initial_weights.start_from`; empty for random ones.
    freezing: makes the rule which layers learn, see `freezing.Freezing`.
    label_fraction: of the training patients whose examples are used, see
      `label_fraction.select`.
    batch_size: examples per step over all replicas of all workers.
    accumulation: parts into which the batch of a replica is divided for less
      memory, see `step.Steps`. Doubled by itself where memory is short.
    epochs: at most so many.
    learning_rate: of Adam, at the beginning.
    schedule: makes what changes the learning rate.
    early_stopping: makes what ends the run.
    best_metric: of validation, by which the best weights are chosen and which
      schedule and early stopping watch: 'loss' or one of the task's
      `rising_metrics`. With few labels the loss rises, for what the network is
      wrongly sure of, long before the AUC falls.
    seed: decides weights, order of the examples and perturbations.
    precision: 'float32'; 'bfloat16' or 'float16' compute in that type, with
      weights and losses in float32; float16 scales the loss.
    jit_compile: see `step.compiled_part`.
    synchronized_batch_norm: see `step.resolve_batch_norm`.
    batch_norm_momentum: how much of its moving statistics batch norm keeps in a
      step, in [0, 1). None is the networks' own, 0.99 (0.9 of the PyTorch
      variant), which takes some 500 steps to forget those of other data.
    decorrelation_weight: of a loss that keeps the channels of each block
      different, see `step.Steps`; 0 as published. 3e-3 kept them as different
      as in random weights beside an MSE of 0.01.
    steps_per_call: steps that run on the device without coming back to Python.
    inputs_in_pipeline: whether the input pipeline, on the CPU, makes what the
      model sees, such as perturbed cubes, rather than the step on its device.
    shuffle_buffer: see `input_pipeline.make_dataset`.
    interleave: shards that are read at once.
    cache: 'memory' keeps the examples, as they are on disk, in the memory of
      each worker after the first epoch.
    checkpoint_steps: steps between checkpoints within an epoch.
    keep_checkpoints: latest checkpoints kept.
    picture_epochs: epochs between pictures in TensorBoard.
  """

  data_dir: str = ''
  task: Callable[[], tasks.Task] = tasks.Pretrain
  start_from: str = ''
  freezing: Callable[[], freezing_lib.Freezing] = freezing_lib.Freezing
  label_fraction: float = 1.0
  batch_size: int = 8
  accumulation: int = 1
  epochs: int = 10000
  learning_rate: float = 1e-3
  schedule: Callable[[], tf.Module] = schedules.ReduceOnPlateau
  early_stopping: Callable[[], tf.Module] = schedules.EarlyStopping
  best_metric: str = 'loss'
  seed: int = 1
  precision: str = 'float32'
  jit_compile: bool | str = step.AUTO
  synchronized_batch_norm: bool | None = None
  batch_norm_momentum: float | None = None
  decorrelation_weight: float = 0.0
  steps_per_call: int = 1
  inputs_in_pipeline: bool = False
  shuffle_buffer: int = 1024
  interleave: int = input_pipeline.INTERLEAVE
  cache: str | None = None
  checkpoint_steps: int = 1000
  keep_checkpoints: int = 3
  picture_epochs: int = 1

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check_kind(field, getattr(self, field.name))
    for name in _COUNTS:
      value = getattr(self, name)
      if value < 1:
        raise errors.UserError(f'train.{name} is {value}, wanted at least 1')
    input_pipeline.check_settings(self.interleave, self.cache)
    if not 0 <= self.seed < 2**31:
      raise errors.UserError(
        f'train.seed is {self.seed}, wanted 0 or more and less than 2^31'
      )
    if not 0 < self.learning_rate < math.inf:
      raise errors.UserError(
        f'train.learning_rate is {self.learning_rate}, wanted more than 0'
      )
    if self.precision not in PRECISIONS:
      raise errors.UserError(
        f'train.precision is {self.precision!r}, wanted one of'
        f' {", ".join(PRECISIONS)}'
      )
    momentum = self.batch_norm_momentum
    if momentum is not None and not 0 <= momentum < 1:
      raise errors.UserError(
        f'train.batch_norm_momentum is {momentum}, wanted 0 or more and less'
        ' than 1, or None'
      )
    if not 0 <= self.decorrelation_weight < math.inf:
      raise errors.UserError(
        f'train.decorrelation_weight is {self.decorrelation_weight}, wanted 0'
        ' or more'
      )

  @property
  def dtype_policy(self) -> str:
    """Keras' name of the precision."""
    return PRECISIONS[self.precision]


def _check_kind(field: dataclasses.Field, value: Any) -> None:
  """Raises UserError where a value is of another kind than its field."""
  if field.type in _KINDS:
    kind, wanted = _KINDS[field.type]
    fits = isinstance(value, kind)
    if isinstance(value, bool):  # which Python counts among the integers
      fits = field.type in _BOOLEANS
  elif callable(field.default):
    fits = callable(value)
    wanted = f'a name without quotes, such as @{field.default.__name__}'
  else:
    return
  if not fits:
    raise errors.UserError(f'train.{field.name} is {value!r}, wanted {wanted}')
