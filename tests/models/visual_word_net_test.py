"""The Y-Net: sizes, outputs, saving, a training step, and gin."""

import gin
import keras
import numpy as np
import pytest
from scipy import special
import tensorflow as tf

from transvw_tf2 import models
from transvw_tf2.models import blocks
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net

_SHAPE = (3, 8, 8, 4, 1)
_TINY = {'base_filters': 2, 'depth': 3, 'head_filters': 5, 'head_units': 6}


def _cubes(seed=0):
  return np.random.default_rng(seed).random(_SHAPE, np.float32)


def _tiny(**kwargs):
  return visual_word_net.VisualWordNet(num_words=4, **_TINY, **kwargs)


def test_parameter_count():
  model = visual_word_net.VisualWordNet(num_words=44)
  model.build((None, 64, 64, 32, 1))

  def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)

  # From the official weights.
  assert count(model.trainable_variables) == 23_970_093
  assert count(model.variables) == 23_975_789
  assert model.embedding_size == 512


def test_layers_are_named_as_in_the_official_weights():
  model = visual_word_net.VisualWordNet(
    num_words=4, base_filters=1, head_filters=2, head_units=3
  )
  model.build((None, 8, 8, 8, 1))
  names = {f'depth_{n}_{part}' for n in range(15) for part in ('conv', 'bn')}
  names |= {'final_conv', 'cls_fc', 'cls_output'}
  layers = blocks.weight_layers(model)
  assert set(layers) == names
  # The head's block sits on the bottleneck.
  assert layers['depth_14_conv'].kernel.shape == (3, 3, 3, 16, 2)


def test_outputs():
  model = _tiny()
  outputs = model(_cubes())
  shapes = {name: tuple(value.shape) for name, value in outputs.items()}
  assert shapes == {'restored': _SHAPE, 'words': (3, 4), 'embedding': (3, 16)}
  assert {value.dtype for value in outputs.values()} == {tf.float32}
  assert 0 <= np.min(outputs['restored']) <= np.max(outputs['restored']) <= 1


def test_words_equal_numpy():
  model = _tiny()
  model(_cubes(1), training=True)
  bottleneck, _ = model.encoder(_cubes())
  pooled = model.head_block(bottleneck).numpy().mean((1, 2, 3))
  layers = blocks.weight_layers(model)
  kernel, bias = (v.numpy() for v in layers['cls_fc'].weights)
  hidden = np.maximum(pooled @ kernel + bias, 0)
  kernel, bias = (v.numpy() for v in layers['cls_output'].weights)
  want = special.softmax(hidden @ kernel + bias, axis=-1)
  np.testing.assert_allclose(model(_cubes())['words'], want, rtol=1e-5)


def test_embedding_is_the_mean_over_space():
  model = _tiny()
  model(_cubes(1), training=True)
  bottleneck, _ = model.encoder(_cubes())
  want = bottleneck.numpy().mean((1, 2, 3))
  np.testing.assert_allclose(model(_cubes())['embedding'], want, rtol=1e-5)
  np.testing.assert_array_equal(
    model.embed(_cubes()), model(_cubes())['embedding']
  )


def test_restores_like_a_unet_with_the_same_weights():
  model = _tiny()
  unet = unet3d.UNet3D(base_filters=2, depth=3)
  want = unet(_cubes()).numpy()
  model.build(_SHAPE)
  own = blocks.weight_layers(model)
  for name, layer in blocks.weight_layers(unet).items():
    own[name].set_weights(layer.get_weights())
  np.testing.assert_allclose(model(_cubes())['restored'], want, rtol=1e-6)


@pytest.mark.parametrize(
  'settings',
  [{}, {'fused_upsampling': True}, {'upsampling': 'transposed'}],
)
def test_saving_gives_the_same_bits(tmp_path, settings):
  model = _tiny(**settings)
  model(_cubes(), training=True)
  want = model(_cubes())
  path = str(tmp_path / 'model.keras')
  model.save(path)
  loaded = keras.saving.load_model(path)
  assert loaded.get_config() == model.get_config()
  for name, value in loaded(_cubes()).items():
    np.testing.assert_array_equal(value, want[name])


def test_comes_back_from_its_config_and_a_checkpoint(tmp_path):
  model = _tiny()
  model(_cubes(), training=True)
  path = tf.train.Checkpoint(model=model).write(str(tmp_path / 'ckpt'))
  # Keras 3 layers in lists would be left out in silence.
  saved = [name for name, _ in tf.train.list_variables(path) if '/' in name]
  assert len(saved) == len(model.variables)
  config = keras.saving.serialize_keras_object(model)
  copy = keras.saving.deserialize_keras_object(config)
  status = tf.train.Checkpoint(model=copy).read(path)
  status.assert_existing_objects_matched()
  for name, value in copy(_cubes()).items():
    np.testing.assert_array_equal(value, model(_cubes())[name])


def test_mixed_precision_outputs_are_float32():
  model = _tiny(dtype='mixed_bfloat16')
  outputs = model(_cubes(), training=True)
  assert {value.dtype for value in outputs.values()} == {tf.float32}
  np.testing.assert_allclose(np.sum(outputs['words'], -1), 1, atol=1e-6)


def test_follows_the_global_policy_of_its_making():
  keras.config.set_dtype_policy('mixed_bfloat16')
  try:
    model = _tiny()
  finally:
    keras.config.set_dtype_policy('float32')
  assert model.encoder.conv_blocks[0].conv.compute_dtype == 'bfloat16'
  assert model(_cubes())['restored'].dtype == tf.float32


def test_training_lowers_the_loss_and_reaches_all_weights():
  keras.utils.set_random_seed(0)
  model = _tiny()
  cubes, words = tf.constant(_cubes()), tf.constant([0, 1, 2])
  model(cubes)
  optimizer = keras.optimizers.Adam(1e-2)
  optimizer.build(model.trainable_variables)

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      outputs = model(cubes, training=True)
      chosen = tf.gather(outputs['words'], words, batch_dims=1)
      loss = tf.reduce_mean(tf.square(outputs['restored'] - cubes))
      loss -= tf.reduce_mean(tf.math.log(chosen))
    variables = model.trainable_variables
    gradients = tape.gradient(loss, variables)
    optimizer.apply(gradients, variables)
    return loss, gradients

  first, gradients = step()
  assert all(gradient is not None for gradient in gradients)
  for _ in range(20):
    loss, _ = step()
  assert loss < 0.7 * first


def test_symbolic_call():
  outputs = _tiny()(keras.Input(_SHAPE[1:]))
  assert outputs['words'].shape == (None, 4)


@pytest.mark.parametrize('name', ['num_words', 'head_filters', 'head_units'])
def test_refuses_sizes_below_one(name):
  with pytest.raises(ValueError, match=f'{name} is 0, wanted an integer'):
    visual_word_net.VisualWordNet(**({'num_words': 4, **_TINY} | {name: 0}))


def test_gin_configures_the_builders():
  gin.parse_config(
    [
      'visual_word_net.base_filters = 3',
      'visual_word_net.synchronized_batch_norm = True',
      'unet3d.skip_connections = False',
    ]
  )
  try:
    model = models.build_visual_word_net(num_words=7, depth=2)
    unet = models.build_unet3d(base_filters=1)
  finally:
    gin.clear_config()
  config = model.get_config()
  assert (config['num_words'], config['base_filters']) == (7, 3)
  assert (config['depth'], config['head_filters']) == (2, 512)
  assert config['synchronized_batch_norm']
  assert not unet.get_config()['skip_connections']
