"""One training or validation step on all replicas.

Knows nothing of epochs, files or what the losses mean. The Keras optimizer runs
outside the XLA cluster: its variable updates cannot be inside it when there is
more than one replica.
"""

from absl import logging
import keras
import numpy as np
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import decorrelation
from transvw_tf2.training import devices

AUTO = 'auto'
_NETWORK = 'network'
_PERTURB = 'perturb'
_NOTHING = 'nothing'
# In a batch: what the model sees, where the input pipeline has made it.
INPUTS = 'inputs'

# The two streams of random numbers of a run.
TRAIN_STREAM = 0
VALIDATION_STREAM = 1


def compiled_part(jit_compile: bool | str, on_gpu: bool) -> str:
  """Returns what XLA compiles: 'network', 'perturb' or 'nothing'.

  On CPU XLA's 3D convolution is about 6 times slower than oneDNN's while its
  perturbation is about 8 times faster, so 'auto' compiles only that; on GPU
  'auto' compiles both, as one program.

  Args:
    jit_compile: 'auto', True (all) or False (nothing).
    on_gpu: whether the replicas are GPUs.

  Raises:
    UserError: another value.
  """
  if jit_compile == AUTO:
    return _NETWORK if on_gpu else _PERTURB
  if not isinstance(jit_compile, bool):
    raise errors.UserError(
      f"train.jit_compile is {jit_compile!r}, wanted 'auto', True or False"
    )
  return _NETWORK if jit_compile else _NOTHING


def resolve_batch_norm(
  strategy: tf.distribute.Strategy,
  jit_compile: bool | str,
  synchronized: bool | None,
) -> bool:
  """Returns whether batch statistics span all replicas.

  Args:
    strategy: of the run.
    jit_compile: see compiled_part.
    synchronized: what the user asks for; None takes what is possible.

  Raises:
    UserError: asked for, with several replicas and a compiled network: the
      exchange cannot be inside an XLA program.
  """
  replicas = strategy.num_replicas_in_sync
  compiled = compiled_part(jit_compile, devices.uses_gpu(strategy)) == _NETWORK
  if replicas == 1:
    return False
  if not compiled:
    return synchronized is not False
  if synchronized:
    raise errors.UserError(
      'train.synchronized_batch_norm is True with a compiled network on '
      f'{replicas} replicas, wanted one or the other: set train.jit_compile = '
      'False or train.synchronized_batch_norm = False'
    )
  logging.info(
    'batch norm: each of %d replicas uses the statistics of its own examples',
    replicas,
  )
  return False


def stream_seed(seed: int, stream: int, epoch: int) -> tf.Tensor:
  """Returns the int32 (2,) seed of one epoch of TRAIN_ or VALIDATION_STREAM."""
  of_epoch = _fold_in(tf.constant([seed, stream], tf.int32), epoch)
  # Only the first number is a hash, and the second what was folded in, to which
  # example_seeds adds places: without this they would run into those of the
  # next epoch.
  return _fold_in(of_epoch, 0)


def _fold_in(seed, number):
  return tf.random.experimental.stateless_fold_in(
    seed,
    tf.constant(number, tf.int32),
    alg='philox',  # the default may differ between devices
  )


def example_seeds(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
  """Returns a seed for each example, whichever replica it is on.

  Args:
    seed: int32 (2,), of stream_seed.
    index: int32 (B,), places of the examples in the epoch.

  Returns:
    int32 (B, 2), row i is (seed[0], seed[1] + index[i]).
  """
  return tf.stack([tf.fill(tf.shape(index), seed[0]), seed[1] + index], axis=1)


class Steps:
  """Compiled steps of one task on one strategy."""

  def __init__(
    self,
    *,
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    task,
    batch_size: int,
    accumulation: int = 1,
    jit_compile: bool | str = AUTO,
    decorrelation_weight: float = 0.0,
  ):
    """Initialises the steps.

    Args:
      strategy: of the run.
      model: built in the strategy's scope; what is frozen stays so.
      optimizer: built on the model's variables in the same scope; with a
        keras.optimizers.LossScaleOptimizer losses are scaled.
      task: see tasks.Task.
      batch_size: examples per step over all replicas.
      accumulation: parts into which the batch of a replica is divided, one
        after the other through the network, for one update. Batch norm takes
        its statistics from a part.
      jit_compile: see compiled_part.
      decorrelation_weight: of a penalty, the sum over the network's blocks of
        `decorrelation.mean_squared_correlation`. Frozen blocks are left out;
        the losses that are returned do not contain it.

    Raises:
      UserError: the batch of a replica cannot be divided so.
    """
    self._strategy = strategy
    self._model = model
    self._optimizer = optimizer
    self._task = task
    self._batch_size = batch_size
    self._accumulation = accumulation
    self._decorrelation_weight = decorrelation_weight
    check_accumulation(batch_size, strategy.num_replicas_in_sync, accumulation)
    part = compiled_part(jit_compile, devices.uses_gpu(strategy))
    # A compiled network has the perturbation inside the same program.
    self._make_inputs = tf.function(
      self._inputs_of, jit_compile=part in (_NETWORK, _PERTURB)
    )
    network = part == _NETWORK
    self._gradients = self._gradients_of
    self._evaluate = self._evaluation_of
    if network:
      self._gradients = tf.function(self._gradients_of, jit_compile=True)
      self._evaluate = tf.function(self._evaluation_of, jit_compile=True)
    # Those that are not frozen; the optimizer knows all.
    self._trainable = list(model.trainable_variables)
    self._variables = [v.value for v in self._trainable]
    self._scales_loss = isinstance(
      optimizer, keras.optimizers.LossScaleOptimizer
    )
    self.train = tf.function(self._train)
    self.train_several = tf.function(self._train_several)
    self.evaluate = tf.function(self._validate)
    self.average_statistics = tf.function(self._average_statistics)

  def _train(self, batch, seed):
    """Updates the weights once.

    Args:
      batch: one element of the distributed data set.
      seed: int32 (2,), of the epoch.

    Returns:
      dict of float32 (): means of the task's losses over the global batch.
    """

    def replica_step(batch, seed):
      scale = tf.constant(1.0)
      if self._scales_loss:
        scale = self._optimizer.scale_loss(scale)
      gradients, sums = self._add_up_parts(self._gradients, batch, seed, scale)
      if self._scales_loss:
        gradients = _agree_on_finite(gradients)
      self._optimizer.apply_gradients(
        zip(gradients, self._trainable, strict=True)
      )
      return sums

    sums = self._add_up_replicas(replica_step, batch, seed)
    return {name: value / self._batch_size for name, value in sums.items()}

  def _train_several(self, batches, seed, count):
    """Updates the weights `count` times in one call.

    Args:
      batches: iterator of the distributed data set.
      seed: int32 (2,), of the epoch.
      count: int32 (), steps.

    Returns:
      dict of float32 (count,): what `train` returns for each step.
    """
    values = {
      name: tf.TensorArray(tf.float32, size=count)
      for name in self._task.metrics
    }
    for step in tf.range(count):
      means = self._train(next(batches), seed)
      values = {
        name: array.write(step, means[name]) for name, array in values.items()
      }
    return {name: array.stack() for name, array in values.items()}

  def _validate(self, batch, seed):
    """Returns sums over the global batch, padding left out.

    Args:
      batch: one element of the distributed data set.
      seed: int32 (2,).

    Returns:
      dict of float32: sums () of the task's losses, its totals, and `weight`,
      the number of examples.
    """

    def replica_step(batch, seed):
      # Not handed to the strategy itself: it would pull all replicas into the
      # one XLA program.
      return self._add_up_parts(self._evaluate, batch, seed)

    return self._add_up_replicas(replica_step, batch, seed)

  def _average_statistics(self):
    """Sets moving statistics to their mean over the replicas.

    Replicas that normalise for themselves drift apart, but a checkpoint holds
    one copy. The moving averages are linear, so that it makes no difference
    how often they are averaged.
    """

    def average():
      context = tf.distribute.get_replica_context()
      for variable in self._model.non_trainable_variables:
        if variable.dtype.startswith('float'):
          mean = context.all_reduce(
            tf.distribute.ReduceOp.MEAN, tf.identity(variable.value)
          )
          variable.assign(mean)

    self._strategy.run(average)

  def add_inputs(self, batch, seed):
    """Adds what the model sees to a batch, in the input pipeline.

    Args:
      batch: of the input pipeline.
      seed: int32 (2,), of the epoch.
    """
    return {**batch, INPUTS: self._make_inputs(batch, seed)}

  def inspect(self, batch, seed):
    """Runs the model on a batch, to look at.

    Args:
      batch: one element of an undistributed data set.
      seed: int32 (2,).

    Returns:
      Pictures, float32 NumPy arrays (B, X, Y, Z, 1) by title as the task says;
      and the embedding, float32 (B, D), or None.
    """
    batch = self._crop(batch, seed)
    inputs = self._make_inputs(batch, seed)
    outputs = self._model(inputs, training=False)
    pictures = self._task.pictures(outputs, batch, inputs)
    embedding = self._task.embedding(outputs)
    return (
      {title: np.asarray(one) for title, one in pictures.items()},
      None if embedding is None else np.asarray(embedding),
    )

  def _add_up_parts(self, function, batch, seed, *arguments):
    """Calls a function on the parts of a replica's batch; adds the results."""
    if self._accumulation == 1:
      return function(batch, seed, *arguments)
    total = None
    for part in _divide(batch, self._accumulation):
      # One after the other, or all would be in memory together.
      with tf.control_dependencies(tf.nest.flatten(total) if total else []):
        result = function(part, seed, *arguments)
      if total is None:
        total = result
      else:
        total = tf.nest.map_structure(tf.add, total, result)
    return total

  def _add_up_replicas(self, function, batch, seed):
    sums = self._strategy.run(function, args=(batch, seed))
    return {
      name: self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
      for name, value in sums.items()
    }

  def _crop(self, batch, seed):
    return self._task.crop(batch, example_seeds(seed, batch['index']))

  def _inputs_of(self, batch, seed):
    """Returns what the model sees of a batch, unless it is there already."""
    if INPUTS in batch:
      return batch[INPUTS]
    return self._task.make_inputs(batch, example_seeds(seed, batch['index']))

  def _gradients_of(self, batch, seed, scale):
    """Returns scaled gradients and sums of the losses on one replica."""
    batch = self._crop(batch, seed)
    batch = self._task.augment(batch, example_seeds(seed, batch['index']))
    inputs = self._make_inputs(batch, seed)
    with tf.GradientTape() as tape:
      outputs, penalty = self._run_model(inputs)
      losses = self._task.losses(outputs, batch, inputs)
      # Divided by the *global* batch: the optimizer adds up the replicas.
      loss = tf.reduce_sum(losses['loss']) / self._batch_size
      loss = (loss + penalty) * scale
    # A whole Y-Net that only names words has a decoder that no loss reaches.
    gradients = tape.gradient(
      loss,
      self._variables,
      unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return gradients, {
      name: tf.reduce_sum(losses[name]) for name in self._task.metrics
    }

  def _run_model(self, inputs):
    """Returns the outputs in training and the penalty on correlations."""
    if not self._decorrelation_weight:
      return self._model(inputs, training=True), 0.0
    with decorrelation.collect() as values:
      outputs = self._model(inputs, training=True)
    # Each part of each replica adds its own.
    parts = self._accumulation * self._strategy.num_replicas_in_sync
    return outputs, self._decorrelation_weight * sum(values) / parts

  def _evaluation_of(self, batch, seed):
    """Returns weighted sums of the losses on one replica."""
    batch = self._crop(batch, seed)
    inputs = self._make_inputs(batch, seed)
    outputs = self._model(inputs, training=False)
    losses = self._task.losses(outputs, batch, inputs)
    weight = batch['weight']
    sums = {
      name: tf.reduce_sum(weight * losses[name]) for name in self._task.metrics
    }
    totals = self._task.totals(outputs, batch)
    return {**sums, **totals, 'weight': tf.reduce_sum(weight)}


def check_accumulation(
  batch_size: int, replicas: int, accumulation: int
) -> None:
  """Raises UserError unless a replica's batch splits into so many parts."""
  of_replica = batch_size // replicas
  if accumulation < 1 or of_replica % accumulation:
    raise errors.UserError(
      f'train.accumulation is {accumulation}, wanted a divisor of the'
      f' {of_replica} examples of a replica: change train.accumulation or'
      ' train.batch_size'
    )


def _divide(batch, parts):
  """Yields equal parts of a batch, a dict of tensors (B, ...)."""
  split = {name: tf.split(value, parts) for name, value in batch.items()}
  for part in range(parts):
    yield {name: pieces[part] for name, pieces in split.items()}


def _agree_on_finite(gradients):
  """Makes gradients NaN on all replicas where they are not finite on one.

  Keras' LossScaleOptimizer looks only at the gradients of the first replica,
  before they are added up, to decide for all whether the step is skipped.
  """
  finite = tf.reduce_all(
    [tf.reduce_all(tf.math.is_finite(one)) for one in gradients]
  )
  nan_if_not = tf.where(finite, 0.0, float('nan'))
  nan_if_not = tf.distribute.get_replica_context().all_reduce(
    tf.distribute.ReduceOp.SUM, nan_if_not
  )
  return [gradients[0] + nan_if_not, *gradients[1:]]
