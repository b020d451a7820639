"""Blocks against SciPy and NumPy, and fused against plain upsampling."""

import keras
import numpy as np
import pytest
from scipy import ndimage
import tensorflow as tf

from transvw_tf2.models import blocks


def _convolve(inputs, kernel):
  """3x3x3 'same' cross-correlation of (X, Y, Z, in) with SciPy."""
  channels_in, channels_out = kernel.shape[3:]
  outputs = np.zeros((*inputs.shape[:3], channels_out))
  for i in range(channels_in):
    for o in range(channels_out):
      outputs[..., o] += ndimage.correlate(
        inputs[..., i].astype(np.float64),
        kernel[..., i, o].astype(np.float64),
        mode='constant',
      )
  return outputs


def _randomize(layer, seed=0):
  """Gives every weight a random value, variances positive."""
  rng = np.random.default_rng(seed)
  for variable in layer.weights:
    variable.assign(rng.uniform(0.1, 0.9, variable.shape) - 0.3)
    if 'moving_variance' in variable.path:
      variable.assign(rng.uniform(0.5, 2, variable.shape))


def _normalize(convolved, block):
  gamma, beta, mean, variance = (
    variable.numpy() for variable in block.batch_norm.weights
  )
  normalized = (convolved - mean) / np.sqrt(variance + 1e-3) * gamma + beta
  return np.maximum(normalized, 0)


def _inner(features):
  """From (B, X, Y, Z, channels) to the axes between blocks, (B, Z, X, Y, .)."""
  return np.moveaxis(features, 3, 1)


def _outer(features):
  """And back, as float32."""
  return np.moveaxis(np.asarray(tf.cast(features, tf.float32)), 1, 3)


def _keras_block(block):
  """The same block as three layers of Keras, with the same weights."""
  layers = keras.Sequential(
    [
      keras.layers.Conv3D(block.filters, 3, padding='same'),
      keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3),
      keras.layers.ReLU(),
    ]
  )
  layers.build((None, None, None, None, block.conv.kernel.shape[3]))
  layers.set_weights(block.get_weights())
  return layers


def _up_level(**kwargs):
  level = blocks.UpLevel(filters=3, number=8, **kwargs)
  level.build((None, 2, 3, 2, 4), (None, 4, 6, 4, 2))
  _randomize(level)
  return level


def _features(seed=1):
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(2, 2, 3, 2, 4)).astype(np.float32)
  skip = rng.normal(size=(2, 4, 6, 4, 2)).astype(np.float32)
  return inputs, skip


def test_conv_block_equals_scipy():
  block = blocks.ConvBlock(filters=3, number=0)
  block.build((None, None, None, None, 2))
  _randomize(block)
  cubes = np.random.default_rng(2).normal(size=(2, 4, 5, 3, 2))
  got = _outer(block(_inner(cubes).astype(np.float32), training=False))
  kernel, bias = (variable.numpy() for variable in block.conv.weights)
  want = np.stack([_convolve(cube, kernel) + bias for cube in cubes])
  assert got.shape == (2, 4, 5, 3, 3)
  np.testing.assert_allclose(got, _normalize(want, block), atol=1e-5)


@pytest.mark.parametrize('training', [False, True])
def test_conv_block_equals_keras_layers(training):
  block = blocks.ConvBlock(filters=3, number=0)
  block.build((None, None, None, None, 2))
  _randomize(block)
  plain = _keras_block(block)
  rng = np.random.default_rng(2)
  cubes = rng.normal(size=(2, 4, 6, 3, 2)).astype(np.float32)
  weights = rng.normal(size=(2, 4, 6, 3, 3)).astype(np.float32)
  results = []
  for layer, order in ((plain, np.asarray), (block, _inner)):
    inputs = tf.constant(order(cubes))
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      outputs = layer(inputs, training=training)
      loss = tf.reduce_sum(outputs * order(weights))
    variables = [variable.value for variable in layer.trainable_variables]
    of_inputs, *gradients = tape.gradient(loss, [inputs, *variables])
    if layer is block:
      outputs, of_inputs = _outer(outputs), _outer(of_inputs)
    results.append([outputs, of_inputs, *gradients, *layer.get_weights()])
  assert len(results[0]) == 2 + 4 + 6
  for want, got in zip(*results, strict=True):
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def test_conv_block_in_training_normalizes_the_batch():
  block = blocks.ConvBlock(filters=2, number=0)
  block.build((None, None, None, None, 1))
  _randomize(block)
  before = [variable.numpy() for variable in block.batch_norm.weights]
  cubes = np.random.default_rng(3).normal(size=(3, 4, 4, 4, 1))
  got = _outer(block(_inner(cubes).astype(np.float32), training=True))
  kernel, bias = (variable.numpy() for variable in block.conv.weights)
  convolved = np.stack([_convolve(cube, kernel) + bias for cube in cubes])
  gamma, beta, mean, variance = before
  axes = (0, 1, 2, 3)
  normalized = (convolved - convolved.mean(axes)) / np.sqrt(
    convolved.var(axes) + 1e-3
  )
  np.testing.assert_allclose(
    got, np.maximum(normalized * gamma + beta, 0), atol=1e-5
  )
  np.testing.assert_allclose(
    block.batch_norm.moving_mean.numpy(),
    0.99 * mean + 0.01 * convolved.mean(axes),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    block.batch_norm.moving_variance.numpy(),
    0.99 * variance + 0.01 * convolved.var(axes),
    rtol=1e-5,
  )


def test_a_folded_block_equals_scipy_with_two_arrays():
  block = blocks.ConvBlock(filters=3, number=0)
  block.build((None, None, None, None, 2))
  _randomize(block)
  cubes = np.random.default_rng(2).normal(size=(2, 4, 5, 3, 2))
  kernel, bias = (variable.numpy() for variable in block.conv.weights)
  want = np.stack([_convolve(cube, kernel) + bias for cube in cubes])
  want = _normalize(want, block)
  for _ in range(2):  # the second time there is nothing left to fold
    block.fold()
    # It does not learn, so `training` changes nothing.
    for training in (False, True):
      outputs = block(_inner(cubes).astype(np.float32), training=training)
      np.testing.assert_allclose(_outer(outputs), want, atol=1e-5 * want.max())
  function = tf.function(block).get_concrete_function(
    tf.TensorSpec((None, 3, 4, 5, 2), tf.float32)
  )
  read = {variable.ref() for variable in function.graph.variables}
  assert read == {variable.value.ref() for variable in block.conv.weights}


def test_the_bias_of_a_normalized_batch_has_no_gradient():
  block = blocks.ConvBlock(filters=2, number=0)
  cubes = np.random.default_rng(3).normal(size=(3, 4, 4, 4, 1))
  with tf.GradientTape() as tape:
    outputs = block(cubes.astype(np.float32), training=True)
    loss = tf.reduce_sum(outputs**2)
  gradients = tape.gradient(
    loss, [variable.value for variable in block.conv.trainable_variables]
  )
  assert np.abs(gradients[0]).max() > 0
  np.testing.assert_array_equal(gradients[1], [0, 0])


def test_a_frozen_block_keeps_its_moving_statistics():
  block = blocks.ConvBlock(filters=2, number=0)
  cubes = np.random.default_rng(3).normal(size=(3, 4, 4, 4, 1))
  cubes = cubes.astype(np.float32)
  want = block(cubes, training=False).numpy()
  block.trainable = False
  np.testing.assert_array_equal(block(cubes, training=True), want)
  assert not block.batch_norm.moving_mean.numpy().any()


def test_one_voxel_is_its_own_mean():
  block = blocks.ConvBlock(filters=2, number=0)
  block(np.ones((1, 1, 1, 1, 1), np.float32), training=True)
  np.testing.assert_allclose(block.batch_norm.moving_variance, [0.99, 0.99])


@pytest.mark.parametrize('dtype', ['mixed_bfloat16', 'mixed_float16'])
@pytest.mark.parametrize('training', [False, True])
def test_conv_block_in_mixed_precision(dtype, training):
  block = blocks.ConvBlock(filters=3, number=0, dtype=dtype)
  block.build((None, None, None, None, 2))
  _randomize(block)
  plain = _keras_block(block)
  cubes = np.random.default_rng(2).normal(size=(2, 4, 6, 3, 2))
  cubes = cubes.astype(np.float32)
  got = block(_inner(cubes), training=training)
  assert got.dtype == dtype.removeprefix('mixed_')
  want = plain(cubes, training=training).numpy()
  np.testing.assert_allclose(_outer(got), want, atol=0.02 * want.max())
  for got, want in zip(block.get_weights(), plain.get_weights(), strict=True):
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_conv_block_initial_weights():
  block = blocks.ConvBlock(filters=32, number=0)
  block.build((None, None, None, None, 16))
  kernel, bias = (variable.numpy() for variable in block.conv.weights)
  limit = np.sqrt(6 / (27 * (16 + 32)))  # Glorot uniform
  assert np.abs(kernel).max() <= limit
  np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.03)
  assert not bias.any()


def test_conv_block_names():
  block = blocks.ConvBlock(filters=1, number=5)
  names = [block.conv.name, block.batch_norm.name, block.relu.name]
  assert names == ['depth_5_conv', 'depth_5_bn', 'depth_5_relu']


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('skip_connections', [False, True])
def test_up_level_equals_numpy(fused, skip_connections):
  level = _up_level(fused_upsampling=fused, skip_connections=skip_connections)
  inputs, skip = _features()
  got = _outer(level(_inner(inputs), _inner(skip), training=False))
  up = inputs.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
  # [up, skip]: the order of the official weights.
  want = np.concatenate([up, skip], axis=-1) if skip_connections else up
  for block in (level.first, level.second):
    kernel, bias = (variable.numpy() for variable in block.conv.weights)
    want = np.stack([_convolve(cube, kernel) + bias for cube in want])
    want = _normalize(want, block)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_transposed_up_level_equals_numpy():
  level = _up_level(upsampling='transposed', skip_connections=False)
  inputs, skip = _features()
  kernel, bias = (variable.numpy() for variable in level.up.weights)
  assert kernel.shape == (2, 2, 2, 4, 4)
  want = np.zeros((2, 4, 6, 4, 4))
  for x in range(2):
    for y in range(2):
      for z in range(2):
        # Keras stores a transposed kernel as (k, k, k, out, in).
        want[:, x::2, y::2, z::2] = inputs @ kernel[x, y, z].T + bias
  for block in (level.first, level.second):
    kernel, bias = (variable.numpy() for variable in block.conv.weights)
    want = np.stack([_convolve(cube, kernel) + bias for cube in want])
    want = _normalize(want, block)
  got = _outer(level(_inner(inputs), _inner(skip), training=False))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('skip_connections', [False, True])
def test_fused_gradients_equal_plain(skip_connections):
  inputs, skip = _features()
  results = []
  for fused in (False, True):
    level = _up_level(fused_upsampling=fused, skip_connections=skip_connections)
    sources = [tf.constant(inputs), tf.constant(skip)]
    with tf.GradientTape() as tape:
      tape.watch(sources)
      loss = tf.reduce_sum(tf.square(level(*sources, training=True)))
    variables = [v.value for v in level.trainable_variables]
    wanted = sources[: 1 + skip_connections] + variables
    results.append(tape.gradient(loss, wanted))
  plain, fused = results
  assert len(plain) == 9 + skip_connections
  for want, got in zip(plain, fused, strict=True):
    scale = np.abs(want).max() + 1
    np.testing.assert_allclose(got / scale, want / scale, atol=2e-5)


def test_fused_equals_plain_in_mixed_precision():
  inputs, skip = _features()
  outputs = [
    _up_level(fused_upsampling=fused, dtype='mixed_bfloat16')(inputs, skip)
    for fused in (False, True)
  ]
  plain, fused = (np.asarray(tf.cast(out, tf.float32)) for out in outputs)
  assert outputs[1].dtype == tf.bfloat16
  np.testing.assert_allclose(fused, plain, atol=0.05 * plain.max())


@pytest.mark.parametrize('fused', [False, True])
def test_up_level_inside_dataset_map(fused):
  level = _up_level(fused_upsampling=fused)
  inputs, skip = _features()
  want = level(inputs, skip).numpy()
  dataset = tf.data.Dataset.from_tensors((inputs, skip)).map(level)
  got = next(iter(dataset)).numpy()
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_layers_come_back_from_their_config():
  for layer in (
    blocks.ConvBlock(3, 5, synchronized_batch_norm=True),
    blocks.UpLevel(3, 8, False, 'nearest', True),
  ):
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()


def test_synchronized_batch_norm_is_passed_on():
  assert not blocks.ConvBlock(1, 0).batch_norm.synchronized
  block = blocks.ConvBlock(1, 0, synchronized_batch_norm=True)
  assert block.batch_norm.synchronized


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'upsampling': 'cubic'}, "upsampling is 'cubic', wanted one of"),
    (
      {'upsampling': 'transposed', 'fused_upsampling': True},
      "fused_upsampling is set with upsampling 'transposed'",
    ),
  ],
)
def test_up_level_refuses_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    blocks.UpLevel(filters=1, number=0, **settings)


@pytest.mark.parametrize('value', [0, -1, 1.5, True, '3'])
def test_check_positive_refuses(value):
  with pytest.raises(ValueError, match=r'filters is .*, wanted an integer'):
    blocks.check_positive(filters=value)


def test_weight_layers_wants_a_built_model():
  with pytest.raises(ValueError, match='wanted a built model'):
    blocks.weight_layers(blocks.ConvBlock(1, 0))


@pytest.mark.parametrize('momentum', [0.0, 0.75])
def test_the_momentum_is_that_of_the_moving_statistics(momentum):
  network = keras.Sequential([blocks.ConvBlock(3, 0), blocks.ConvBlock(2, 1)])
  inputs = np.random.default_rng(0).normal(size=(2, 4, 5, 6, 1))
  network.build((None, 6, 4, 5, 1))
  _randomize(network)
  kernel, bias = network.layers[0].conv.get_weights()
  old = network.layers[0].batch_norm.moving_mean.numpy()
  blocks.set_batch_norm_momentum(network, momentum)
  network(_inner(inputs).astype(np.float32), training=True)
  batch = np.stack([_convolve(one, kernel) + bias for one in inputs])
  np.testing.assert_allclose(
    network.layers[0].batch_norm.moving_mean.numpy(),
    momentum * old + (1 - momentum) * batch.mean(axis=(0, 1, 2, 3)),
    rtol=1e-4,
  )
  assert network.layers[1].batch_norm.momentum == momentum


@pytest.mark.parametrize('grid', [(1, 1, 1), (2, 3, 1), (1, 3, 2), (4, 6, 2)])
def test_features_are_averaged_over_the_parts_of_a_cube(grid):
  rng = np.random.default_rng(3)
  cubes = rng.random((2, 4, 6, 2, 5)).astype(np.float32)
  sides = [4 // grid[0], 6 // grid[1], 2 // grid[2]]
  want = [
    cubes[
      :,
      x * sides[0] : (x + 1) * sides[0],
      y * sides[1] : (y + 1) * sides[1],
      z * sides[2] : (z + 1) * sides[2],
    ].mean((1, 2, 3))
    for x in range(grid[0])
    for y in range(grid[1])
    for z in range(grid[2])
  ]
  features = np.moveaxis(cubes, 3, 1)  # (B, Z, X, Y, C)
  np.testing.assert_allclose(
    blocks.pool_grid(features, grid), np.concatenate(want, axis=1), rtol=1e-5
  )


def test_features_are_averaged_around_the_middle_of_a_cube():
  features = np.random.default_rng(3).random((2, 4, 3, 1, 5), np.float32)
  want = (features[:, 1, 1, 0] + features[:, 2, 1, 0]) / 2
  np.testing.assert_allclose(blocks.pool_centre(features), want, rtol=1e-6)


@pytest.mark.parametrize('grid', [(3, 1, 1), (1, 4, 1), (0, 1, 1), (2, 2)])
def test_unequal_parts_are_refused(grid):
  with pytest.raises(ValueError, match=r'divide .* \(4, 6, 2\)'):
    blocks.check_grid(grid, (4, 6, 2))
