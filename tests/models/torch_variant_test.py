"""The network of the PyTorch release: sizes, parts, saving, training."""

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import models
from transvw_tf2.models import blocks
from transvw_tf2.models import torch_variant

_SHAPE = (3, 8, 8, 4, 1)
_TINY = {'base_filters': 2, 'depth': 3, 'head_filters': 5}


def _cubes(seed=0):
  return np.random.default_rng(seed).random(_SHAPE, np.float32)


def _tiny(**kwargs):
  return torch_variant.TorchVisualWordNet(**({'num_words': 4} | _TINY | kwargs))


def test_parameter_count():
  model = torch_variant.TorchVisualWordNet(num_words=44)
  model.build((None, 64, 64, 32, 1))
  count = sum(int(np.prod(one.shape)) for one in model.trainable_variables)
  assert count == 33_277_613  # of the release


@pytest.mark.parametrize(
  ('settings', 'names'),
  [
    ({}, {'restored', 'words', 'embedding'}),
    ({'num_words': None}, {'restored', 'embedding'}),
    ({'has_decoder': False, 'head_units': 3}, {'words', 'embedding'}),
    ({'has_decoder': False, 'num_words': None}, {'embedding'}),
  ],
)
def test_parts_outputs_and_saving(settings, names, tmp_path):
  model = _tiny(**settings)
  outputs = model(_cubes())
  model(_cubes(1), training=True)
  shapes = {'restored': _SHAPE, 'words': (3, 4), 'embedding': (3, 16)}
  assert {name: tuple(value.shape) for name, value in outputs.items()} == {
    name: shapes[name] for name in names
  }
  assert model.compute_output_shape(_SHAPE) == {
    name: shapes[name] for name in names
  }
  parts = {'encoder'}
  parts |= {'decoder', 'output'} if 'restored' in names else set()
  parts |= {'head'} if 'words' in names else set()
  assert set(model.parts) == parts
  weights = [
    weight.path
    for layers in model.parts.values()
    for layer in layers
    for weight in layer.weights
  ]
  assert sorted(weights) == sorted(weight.path for weight in model.weights)
  path = str(tmp_path / 'model.keras')
  model.save(path)
  loaded = keras.saving.load_model(path)
  assert loaded.get_config() == model.get_config()
  for name, value in loaded(_cubes()).items():
    np.testing.assert_array_equal(value, model(_cubes())[name])
  np.testing.assert_array_equal(
    loaded.embed(_cubes()), model(_cubes())['embedding']
  )


def test_all_blocks_normalise_as_in_pytorch():
  model = _tiny(batch_statistics=False)
  model(_cubes())
  norms = [
    layer
    for name, layer in blocks.weight_layers(model).items()
    if name.endswith('_bn')
  ]
  assert len(norms) == 11
  assert {(one.epsilon, one.momentum) for one in norms} == {(1e-5, 0.9)}


def test_statistics_of_the_batch_in_evaluation():
  """One cube's output depends on its batch then, and nothing moves."""
  model = _tiny(batch_statistics=True)
  before = [one.numpy() for one in model.variables]
  together = model(_cubes())
  alone = model(_cubes()[:1])
  assert np.abs(together['embedding'][0] - alone['embedding'][0]).max() > 1e-3
  for one, value in zip(model.variables, before, strict=False):
    np.testing.assert_array_equal(one, value)
  running = _tiny()
  running.build(_SHAPE)
  running.set_weights(model.get_weights())
  want = running(_cubes(), training=True)
  for name, value in together.items():
    np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(model.embed(_cubes()), together['embedding'])


@pytest.mark.parametrize('synchronized', [False, True])
def test_statistics_move_in_training_alone(synchronized):
  """So that a network that starts from this one has some to go by."""
  model = _tiny(batch_statistics=True, synchronized_batch_norm=synchronized)
  for _ in range(200):
    model(_cubes(), training=True)
  weights = model.get_weights()
  want = model(_cubes())['embedding']
  for one, value in zip(model.get_weights(), weights, strict=True):
    np.testing.assert_array_equal(one, value)
  other = _tiny()
  other.build(_SHAPE)
  other.set_weights(weights)
  np.testing.assert_allclose(
    other(_cubes())['embedding'], want, rtol=1e-3, atol=1e-5
  )


@pytest.mark.parametrize('synchronized', [False, True])
def test_a_frozen_network_keeps_the_statistics_of_the_batch(synchronized):
  model = _tiny(batch_statistics=True, synchronized_batch_norm=synchronized)
  want = {name: value.numpy() for name, value in model(_cubes()).items()}
  before = [one.numpy() for one in model.variables]
  model.trainable = False
  for training in (False, True):
    for name, value in model(_cubes(), training=training).items():
      np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    model.embed(_cubes()), want['embedding'], rtol=1e-4, atol=1e-6
  )
  for one, value in zip(model.variables, before, strict=True):
    np.testing.assert_array_equal(one, value)


def test_a_frozen_network_takes_the_moving_statistics_otherwise():
  model = _tiny()
  want = model(_cubes())
  model.trainable = False
  for name, value in model(_cubes(), training=True).items():
    np.testing.assert_array_equal(value, want[name])


def test_a_training_step_reaches_all_weights():
  model = _tiny()
  model(_cubes())
  with tf.GradientTape() as tape:
    outputs = model(_cubes(), training=True)
    loss = tf.reduce_mean(tf.square(outputs['restored'] - _cubes()))
    loss -= tf.reduce_mean(tf.math.log(outputs['words'][:, 0]))
  gradients = tape.gradient(loss, model.trainable_variables)
  assert all(gradient is not None for gradient in gradients)


def test_comes_back_from_a_checkpoint(tmp_path):
  model = _tiny()
  model(_cubes(), training=True)
  path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'ckpt'))
  saved = [name for name, _ in tf.train.list_variables(path) if '/' in name]
  assert len(saved) == len(model.variables)


def test_wrong_cubes_and_sizes_give_one_clear_line():
  with pytest.raises(ValueError, match='cubes have shape') as raised:
    _tiny()(np.zeros((1, 8, 8, 6, 1), np.float32))
  assert '\n' not in str(raised.value)
  with pytest.raises(ValueError, match='num_words is 0, wanted an integer'):
    _tiny(num_words=0)


def test_gin_configures_the_builder():
  gin.parse_config(['torch_visual_word_net.base_filters = 3'])
  try:
    model = models.build_torch_visual_word_net(num_words=7, depth=2)
  finally:
    gin.clear_config()
  config = model.get_config()
  assert (config['num_words'], config['base_filters']) == (7, 3)
  assert (config['depth'], config['head_filters']) == (2, 1024)
