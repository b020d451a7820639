"""One step against plain TensorFlow, and what is compiled."""

import functools
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.models import decorrelation
from transvw_tf2.training import step
from transvw_tf2.training import tasks


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


def test_no_cube_of_another_epoch_has_the_same_seed():
  seeds = set()
  for epoch in range(1, 11):
    seed = step.stream_seed(1, step.TRAIN_STREAM, epoch)
    rows = step.example_seeds(seed, tf.range(300)).numpy()
    seeds |= {tuple(row) for row in rows.tolist()}
  assert len(seeds) == 10 * 300


def _make(jit_compile, **settings):
  """Returns a Steps, its model and its task."""
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
    **settings,
  )
  return steps, model, task


def _batch(seed=3):
  cubes, words = tiny_data.make_cubes(4, seed=seed)
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


@pytest.mark.parametrize('jit_compile', ['auto', True])
def test_accumulation_adds_up_the_gradients_of_parts(jit_compile):
  steps, model, task = _make(jit_compile, accumulation=2)
  batch, seed = _batch(), tf.constant([1, 2])
  inputs = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))
  before = [v.numpy() for v in model.trainable_variables]
  moving = [v.numpy() for v in model.non_trainable_variables]

  @tf.function
  def compute_by_hand(inputs, cubes, words):
    with tf.GradientTape() as tape:
      outputs = model(inputs, training=True)
      chosen = tf.gather(outputs['words'], words, batch_dims=1)
      mse = tf.reduce_mean(tf.square(outputs['restored'] - cubes))
      loss = mse - 0.01 * tf.reduce_mean(tf.math.log(chosen))
    return tape.gradient(loss, [v.value for v in model.trainable_variables])

  parts = [
    compute_by_hand(inputs[at], batch['cube'][at], batch['word'][at])
    for at in (slice(0, 2), slice(2, 4))
  ]
  want_moving = [v.numpy() for v in model.non_trainable_variables]
  for variable, value in zip(
    model.non_trainable_variables, moving, strict=True
  ):
    variable.assign(value)

  steps.train(batch, seed)
  for old, variable, *gradients in zip(
    before, model.trainable_variables, *parts, strict=True
  ):
    np.testing.assert_allclose(
      old - variable.numpy(), np.mean(gradients, axis=0), rtol=1e-3, atol=2e-6
    )
  # Each part moved the statistics.
  for variable, want in zip(
    model.non_trainable_variables, want_moving, strict=True
  ):
    np.testing.assert_allclose(variable.numpy(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('accumulation', [1, 2])
def test_what_no_loss_reaches_stays_as_it_is(monkeypatch, accumulation):
  network = functools.partial(
    models.build_visual_word_net, base_filters=2, depth=3
  )
  monkeypatch.setattr(
    tiny_data,
    'make_task',
    lambda: tasks.NameWords(network, tiny_data.AddNoise),
  )
  steps, model, _ = _make(False, accumulation=accumulation)
  before = {v.path: v.numpy() for v in model.trainable_variables}
  steps.train(_batch(), tf.constant([1, 2]))
  for variable in model.trainable_variables:
    path = variable.path
    if 'decoder' in path or path.endswith('kernel'):
      same = np.array_equal(variable.numpy(), before[path])
      assert same == ('decoder' in path or 'final_conv' in path), path


def _train_for_a_while(weight):
  """Returns how alike channels are before and after, and the first loss."""
  steps, model, task = _make('auto', decorrelation_weight=weight)
  steps._optimizer.learning_rate = 0.1
  batch, seed = _batch(), tf.constant([1, 2])
  inputs = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))

  def measure():
    with decorrelation.collect() as values:
      model(inputs, training=True)
    return float(sum(values))

  before = measure()
  losses = [float(steps.train(batch, seed)['loss']) for _ in range(15)]
  return before, measure(), losses[0]


def test_decorrelation_makes_channels_less_alike():
  before, without, plain_loss = _train_for_a_while(0.0)
  _, after, loss = _train_for_a_while(1.0)
  assert after < 0.5 * min(before, without)
  assert loss == pytest.approx(plain_loss, rel=1e-5)  # it is not told in it


def test_decorrelation_adds_its_gradient_in_parts():
  batch, seed = _batch(), tf.constant([1, 2])
  updates = []
  for weight in (0.0, 0.5):
    steps, model, _ = _make('auto', accumulation=2, decorrelation_weight=weight)
    before = [v.numpy() for v in model.trainable_variables]
    steps.train(batch, seed)
    updates.append(
      [
        old - v.numpy()
        for old, v in zip(before, model.trainable_variables, strict=True)
      ]
    )
  _, model, task = _make('auto')
  inputs = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))

  @tf.function
  def compute_by_hand(inputs):
    with tf.GradientTape() as tape, decorrelation.collect() as values:
      model(inputs, training=True)
      value = 0.5 * tf.add_n(values)
    variables = [v.value for v in model.trainable_variables]
    return tape.gradient(value, variables, unconnected_gradients='zero')

  parts = [compute_by_hand(one) for one in tf.split(inputs, 2)]
  for plain, more, *want in zip(*updates, *parts, strict=True):
    np.testing.assert_allclose(
      more - plain, np.mean(want, axis=0), rtol=1e-2, atol=1e-5
    )


_TWO_REPLICAS = """
import keras, numpy as np, tensorflow as tf
from tests.training import step_test, tiny_data
from transvw_tf2.training import devices, step

two = devices.make_strategy('cpu:2')
one = tf.distribute.MirroredStrategy(['/cpu:0'])

def run(strategy, batch_size):
  keras.utils.set_random_seed(0)
  with strategy.scope():
    task = tiny_data.prepare(tiny_data.make_task())
    model = task.build_model(strategy is two)
    model(tf.zeros((1, *tiny_data.CUBE_SHAPE, 1)))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
  before = [v.numpy() for v in model.trainable_variables]
  steps = step.Steps(strategy=strategy, model=model, optimizer=optimizer,
                     task=task, batch_size=batch_size, jit_compile=False,
                     decorrelation_weight=0.5)
  batch = strategy.experimental_distribute_values_from_function(
    lambda context: step_test._batch())
  steps.train(batch, tf.constant([1, 2]))
  return [a - b.numpy() for a, b in zip(before, model.trainable_variables)]

# Both replicas have the same cubes, and so the statistics and the mean of one.
for got, want in zip(run(two, 8), run(one, 4)):
  np.testing.assert_allclose(got, want, rtol=1e-2, atol=2e-5)
print('right')
"""


def test_replicas_collect_their_own():
  done = subprocess.run(
    [sys.executable, '-c', _TWO_REPLICAS],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split()[-1] == 'right'


def test_accumulation_must_divide():
  with pytest.raises(errors.UserError, match='accumulation is 3'):
    _make(False, accumulation=3)


def test_evaluation_in_parts_is_the_same():
  batch, seed = _batch(), tf.constant([1, 2])
  whole = _make('auto')[0].evaluate(batch, seed)
  parts = _make('auto', accumulation=4)[0].evaluate(batch, seed)
  assert set(parts) == set(whole)
  for name, value in whole.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)


def test_totals_count_which_word_is_taken_for_which():
  steps, model, task = _make('auto')
  batch, seed = _batch(), tf.constant([1, 2])
  confusion = steps.evaluate(batch, seed)['confusion'].numpy()
  inputs = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))
  named = model(inputs, training=False)['words'].numpy().argmax(axis=1)
  want = np.zeros((3, 3))
  for word, name, weight in zip(
    batch['word'].numpy(), named, batch['weight'].numpy(), strict=True
  ):
    want[word, name] += weight
  np.testing.assert_array_equal(confusion, want)


def test_several_steps_in_a_call_are_the_same_steps():
  batches, seed = [_batch(seed) for seed in (3, 4, 5)], tf.constant([1, 2])
  one_by_one, model, _ = _make('auto')
  want = [one_by_one.train(batch, seed) for batch in batches]
  several, other, _ = _make('auto')
  dataset = tf.data.Dataset.from_generator(
    lambda: batches,
    output_signature=tf.nest.map_structure(
      lambda one: tf.TensorSpec(one.shape, one.dtype), batches[0]
    ),
  )
  found = several.train_several(iter(dataset), seed, tf.constant(3))
  for name, values in found.items():
    np.testing.assert_allclose(
      values, [float(one[name]) for one in want], rtol=1e-5, err_msg=name
    )
  for first, second in zip(model.variables, other.variables, strict=True):
    np.testing.assert_allclose(
      first.numpy(), second.numpy(), rtol=1e-4, atol=1e-6
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
  pictures, embedding = steps.inspect(batch, seed)
  assert list(pictures) == ['original', 'perturbed', 'restored']
  np.testing.assert_array_equal(pictures['original'], batch['cube'])
  want = task.make_inputs(batch, step.example_seeds(seed, tf.range(4)))
  np.testing.assert_allclose(pictures['perturbed'], want, atol=1e-5)
  outputs = model(want, training=False)
  np.testing.assert_allclose(
    pictures['restored'], outputs['restored'], atol=1e-5
  )
  np.testing.assert_allclose(embedding, outputs['embedding'], atol=1e-5)
