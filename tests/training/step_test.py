"""One step against plain TensorFlow, and what is compiled."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.training import step


class _Strategy:
  """As much of a strategy as resolve_batch_norm looks at."""

  def __init__(self, replicas, device='CPU'):
    self.num_replicas_in_sync = replicas
    self.extended = self
    self.worker_devices = [f'/device:{device}:{i}' for i in range(replicas)]


@pytest.mark.parametrize(
  ('jit_compile', 'on_gpu', 'want'),
  [
    ('auto', False, 'perturb'),
    ('auto', True, 'network'),
    (True, False, 'network'),
    (False, True, 'nothing'),
  ],
)
def test_compiled_part(jit_compile, on_gpu, want):
  assert step.compiled_part(jit_compile, on_gpu) == want


def test_compiled_part_refuses():
  with pytest.raises(errors.UserError, match="jit_compile is 'yes'"):
    step.compiled_part('yes', False)


@pytest.mark.parametrize(
  ('replicas', 'device', 'jit_compile', 'asked', 'want'),
  [
    (1, 'CPU', 'auto', True, False),  # nothing to synchronise
    (2, 'CPU', 'auto', None, True),
    (2, 'CPU', 'auto', False, False),
    (2, 'GPU', 'auto', None, False),  # the network is compiled
    (2, 'GPU', False, None, True),
  ],
)
def test_batch_norm(replicas, device, jit_compile, asked, want):
  strategy = _Strategy(replicas, device)
  assert step.resolve_batch_norm(strategy, jit_compile, asked) is want


def test_compiled_and_synchronised_is_refused():
  with pytest.raises(errors.UserError, match='wanted one or the other'):
    step.resolve_batch_norm(_Strategy(2), True, True)


def test_seeds_of_cubes_are_their_own():
  seed = step.stream_seed(1, step.TRAIN_STREAM, 3)
  seeds = step.example_seeds(seed, tf.constant([5, 9])).numpy()
  for row, index in zip(seeds, (5, 9), strict=True):
    alone = step.example_seeds(seed, tf.constant([index])).numpy()[0]
    np.testing.assert_array_equal(row, alone)
  others = [
    step.stream_seed(1, step.VALIDATION_STREAM, 3),
    step.stream_seed(2, step.TRAIN_STREAM, 3),
    step.stream_seed(1, step.TRAIN_STREAM, 4),
  ]
  all_seeds = {tuple(one.numpy().tolist()) for one in (seed, *others)}
  assert len(all_seeds) == 4


def _make(jit_compile):
  """Returns a Steps, its model and a copy of the model's weights."""
  strategy = tf.distribute.MirroredStrategy(['/cpu:0'])
  keras.utils.set_random_seed(0)
  with strategy.scope():
    task = tiny_data.prepare(tiny_data.make_task())
    model = task.build_model()
    model(tf.zeros((1, *tiny_data.CUBE_SHAPE, 1)))
    optimizer = keras.optimizers.SGD(1.0)  # an update is the gradient
    optimizer.build(model.trainable_variables)
  steps = step.Steps(
    strategy=strategy,
    model=model,
    optimizer=optimizer,
    task=task,
    batch_size=4,
    jit_compile=jit_compile,
  )
  return steps, model, task


def _batch():
  cubes, words = tiny_data.make_cubes(4, seed=3)
  return {
    'cube': tf.constant((cubes[..., np.newaxis] + 1000) / 2000, tf.float32),
    'word': tf.constant(words, tf.int32),
    'index': tf.range(4),
    'weight': tf.constant([1.0, 1.0, 1.0, 0.0]),
  }


@pytest.mark.parametrize('jit_compile', [False, 'auto', True])
def test_a_step_equals_plain_tensorflow(jit_compile):
  steps, model, task = _make(jit_compile)
  batch, seed = _batch(), tf.constant([1, 2])
  before = [v.numpy() for v in model.trainable_variables]

  moving = [v.numpy() for v in model.non_trainable_variables]
  inputs = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))

  @tf.function
  def compute_by_hand():
    with tf.GradientTape() as tape:
      outputs = model(inputs, training=True)
      chosen = tf.gather(outputs['words'], batch['word'], batch_dims=1)
      mse = tf.reduce_mean(tf.square(outputs['restored'] - batch['cube']))
      loss = mse - 0.01 * tf.reduce_mean(tf.math.log(chosen))
    variables = [v.value for v in model.trainable_variables]
    return loss, mse, tape.gradient(loss, variables)

  loss, mse, gradients = compute_by_hand()
  for variable, value in zip(
    model.non_trainable_variables, moving, strict=True
  ):
    variable.assign(value)

  values = steps.train(batch, seed)
  assert float(values['loss']) == pytest.approx(float(loss), rel=1e-4)
  assert float(values['mse']) == pytest.approx(float(mse), rel=1e-4)
  for old, variable, gradient in zip(
    before, model.trainable_variables, gradients, strict=True
  ):
    # Differences of weights near 1 keep 7 digits.
    np.testing.assert_allclose(
      old - variable.numpy(), gradient, rtol=1e-3, atol=2e-6
    )


def test_evaluation_leaves_padding_out_and_weights_alone():
  steps, model, task = _make('auto')
  batch, seed = _batch(), tf.constant([1, 2])
  before = [v.numpy() for v in model.variables]
  sums = steps.evaluate(batch, seed)
  assert float(sums['weight']) == 3
  inputs = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))
  restored = model(inputs, training=False)['restored'].numpy()
  error = np.square(restored - batch['cube'].numpy()).mean((1, 2, 3, 4))
  assert float(sums['mse']) == pytest.approx(error[:3].sum(), rel=1e-4)
  for old, variable in zip(before, model.variables, strict=True):
    np.testing.assert_array_equal(old, variable.numpy())


def test_pictures_show_the_perturbed_cubes():
  steps, model, task = _make('auto')
  batch, seed = _batch(), tf.constant([1, 2])
  pictures = steps.draw_pictures(batch, seed)
  assert list(pictures) == ['original', 'perturbed', 'restored']
  np.testing.assert_array_equal(pictures['original'], batch['cube'])
  want = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))
  np.testing.assert_allclose(pictures['perturbed'], want, atol=1e-5)
  restored = model(want, training=False)['restored']
  np.testing.assert_allclose(pictures['restored'], restored, atol=1e-5)
