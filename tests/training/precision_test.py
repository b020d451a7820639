"""bfloat16 and float16 against float32, and loss scaling over replicas."""

import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import step


def _run_steps(dtype, scaled=False, count=3):
  """Returns losses of a few steps of the tiny network, and its model."""
  strategy = tf.distribute.MirroredStrategy(['/cpu:0'])
  keras.utils.set_random_seed(0)
  with strategy.scope():
    task = tiny_data.prepare(tiny_data.make_task())
    model = task.build_model(dtype=dtype)
    model(tf.zeros((1, *tiny_data.CUBE_SHAPE, 1)))
    optimizer = keras.optimizers.SGD(0.1)
    if scaled:
      optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
  steps = step.Steps(
    strategy=strategy,
    model=model,
    optimizer=optimizer,
    task=task,
    batch_size=6,
  )
  cubes, words = tiny_data.make_cubes(6, seed=3)
  batch = {
    'cube': tf.constant((cubes[..., np.newaxis] + 1000) / 2000, tf.float32),
    'word': tf.constant(words, tf.int32),
    'index': tf.range(6),
    'weight': tf.ones(6),
  }
  seed = tf.constant([1, 2])
  losses = [float(steps.train(batch, seed)['loss']) for _ in range(count)]
  return np.array(losses), model


@tiny_data.needs_amx
def test_bfloat16_is_near_float32_and_keeps_weights_in_float32():
  want, _ = _run_steps('float32')
  found, model = _run_steps('mixed_bfloat16')
  np.testing.assert_allclose(found, want, rtol=0.02)
  assert np.abs(found - want).max() > 0  # it is another precision
  assert {variable.dtype for variable in model.variables} == {'float32'}
  outputs = model(tf.zeros((1, *tiny_data.CUBE_SHAPE, 1)))
  assert {one.dtype for one in outputs.values()} == {tf.float32}


def test_a_scaled_loss_gives_the_same_steps():
  """In float32 scaling by a power of two changes no digit."""
  want, plain = _run_steps('float32')
  found, scaled = _run_steps('float32', scaled=True)
  np.testing.assert_allclose(found, want, rtol=1e-6)
  for one, other in zip(plain.variables, scaled.variables, strict=True):
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-7)


_TWO_REPLICAS = """
import keras, numpy as np, tensorflow as tf
from transvw_tf2.training import devices, step, tasks

strategy = devices.make_strategy('cpu:2')

class Task(tasks.Task):
  metrics = ('loss',)
  def make_inputs(self, batch, seeds):
    return batch['cube']
  def losses(self, outputs, batch, inputs):
    return {'loss': tf.reduce_sum(outputs, axis=1)}

with strategy.scope():
  model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
  optimizer = keras.optimizers.LossScaleOptimizer(
    keras.optimizers.SGD(1.0), initial_scale=8.0
  )
  optimizer.build(model.trainable_variables)
steps = step.Steps(strategy=strategy, model=model, optimizer=optimizer,
                   task=Task(), batch_size=2, jit_compile=False)

def run(*rows):
  batch = strategy.experimental_distribute_values_from_function(
    lambda context: {
      'cube': tf.constant([rows[context.replica_id_in_sync_group]]),
      'index': tf.constant([context.replica_id_in_sync_group]),
    })
  steps.train(batch, tf.constant([1, 2]))
  kernel = model.layers[0].kernel.value
  return [one.numpy().ravel() for one in strategy.experimental_local_results(
    kernel)], float(optimizer.dynamic_scale.numpy())

before, _ = run([0.0, 0.0], [0.0, 0.0])
# Not finite on the second replica only.
after, scale = run([1.0, 1.0], [1.0, np.inf])
for one, other in zip(before, after):
  np.testing.assert_array_equal(one, other)
assert scale == 4.0, scale
# d loss / d kernel is the mean of the rows.
after, scale = run([1.0, 2.0], [3.0, 4.0])
for one, other in zip(before, after):
  np.testing.assert_allclose(one - other, [2.0, 3.0], rtol=1e-6)
assert scale == 4.0, scale
print('right')
"""


def test_one_replica_that_overflows_skips_the_step_on_all():
  done = subprocess.run(
    [sys.executable, '-c', _TWO_REPLICAS],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split()[-1] == 'right'


def test_the_scale_of_the_loss_is_in_the_checkpoint(tmp_path):
  def make(scale):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.LossScaleOptimizer(
      keras.optimizers.Adam(), initial_scale=scale
    )
    optimizer.build(model.trainable_variables)
    return optimizer, checkpoints.Checkpoints(
      str(tmp_path),
      model=model,
      progress=checkpoints.Progress(),
      optimizer=optimizer,
    )

  optimizer, saved = make(8.0)
  optimizer.apply([tf.ones((2, 1)), tf.ones(1)])
  saved.save_latest(1)
  other, restored = make(2.0)
  restored.restore()
  for one, two in zip(optimizer.variables, other.variables, strict=True):
    np.testing.assert_array_equal(one.numpy(), two.numpy())
  assert float(other.dynamic_scale.numpy()) == 8.0
