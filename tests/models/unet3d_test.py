"""Sizes, names, shapes and saving of the U-Net."""

import keras
import numpy as np
import pytest
from scipy import special
import tensorflow as tf

from transvw_tf2.models import blocks
from transvw_tf2.models import unet3d

_SHAPE = (2, 8, 12, 4, 1)


def _cubes(shape=_SHAPE, seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


def _tiny(**kwargs):
  return unet3d.UNet3D(base_filters=2, depth=3, **kwargs)


def _trainable(model):
  return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


# From the published weights.
@pytest.mark.parametrize(
  ('settings', 'parameters'),
  [
    ({}, 16_320_257),
    ({'fused_upsampling': True}, 16_320_257),
    ({'skip_connections': False}, 13_997_825),
    ({'upsampling': 'transposed'}, 19_073_665),
  ],
)
def test_parameter_count(settings, parameters):
  model = unet3d.UNet3D(**settings)
  model.build((None, 64, 64, 32, 1))
  assert _trainable(model) == parameters


def test_layers_are_named_as_in_the_official_weights():
  model = unet3d.UNet3D(base_filters=2)
  model.build((None, 64, 64, 32, 1))
  filters = {
    name: layer.filters
    for name, layer in blocks.weight_layers(model).items()
    if name.endswith('_conv')
  }
  sizes = [2, 4, 4, 8, 8, 16, 16, 32, 16, 16, 8, 8, 4, 4]
  want = {f'depth_{n}_conv': size for n, size in enumerate(sizes)}
  assert filters == want | {'final_conv': 1}
  batch_norms = {f'depth_{n}_bn' for n in range(14)}
  assert set(blocks.weight_layers(model)) == set(want) | batch_norms | {
    'final_conv'
  }
  kernel = blocks.weight_layers(model)['depth_8_conv'].kernel
  assert kernel.shape[3] == 32 + 16  # [up, skip]


def test_encoder_features():
  encoder = unet3d.Encoder(base_filters=2, depth=3)
  bottleneck, skips = encoder(_cubes())
  # Between blocks the axes are z, x and y.
  assert bottleneck.shape == (2, 1, 2, 3, 16)
  assert [skip.shape for skip in skips] == [(2, 4, 8, 12, 4), (2, 2, 4, 6, 8)]
  assert encoder.compute_output_shape(_SHAPE) == (
    tuple(bottleneck.shape),
    [tuple(skip.shape) for skip in skips],
  )
  assert encoder.embedding_size == 16
  # The skip is the second block of its level, before pooling by maxima.
  inner = np.moveaxis(_cubes(), 3, 1)
  features = encoder.conv_blocks[1](encoder.conv_blocks[0](inner))
  np.testing.assert_allclose(skips[0], features, rtol=1e-6)
  pooled = features.numpy().reshape(2, 2, 2, 4, 2, 6, 2, 4).max((2, 4, 6))
  deeper = encoder.conv_blocks[3](encoder.conv_blocks[2](pooled))
  np.testing.assert_allclose(skips[1], deeper, rtol=1e-5, atol=1e-6)


def test_restored_is_the_sigmoid_of_the_final_convolution():
  model = _tiny()
  restored = model(_cubes())
  assert restored.shape == _SHAPE
  assert restored.dtype == tf.float32
  features = model.decoder(*model.encoder(_cubes())).numpy()
  features = np.moveaxis(features, 1, 3)
  kernel, bias = (variable.numpy() for variable in model.final_conv.weights)
  want = special.expit(features @ kernel[0, 0, 0] + bias)
  np.testing.assert_allclose(restored, want, rtol=1e-5)


def test_embed_is_the_mean_over_space():
  model = _tiny()
  model(_cubes(seed=1), training=True)  # moves the moving statistics
  bottleneck, _ = model.encoder(_cubes(), training=False)
  embedding = model.embed(_cubes())
  assert embedding.shape == (2, model.embedding_size) == (2, 16)
  np.testing.assert_allclose(
    embedding, bottleneck.numpy().mean((1, 2, 3)), rtol=1e-5
  )


def test_skips_reach_the_output_only_when_on():
  for skip_connections in (True, False):
    decoder = unet3d.Decoder(2, 3, skip_connections=skip_connections)
    bottleneck, skips = unet3d.Encoder(2, 3)(_cubes())
    one = decoder(bottleneck, skips).numpy()
    other = decoder(bottleneck, [skip + 1 for skip in skips]).numpy()
    assert np.array_equal(one, other) != skip_connections


def test_fused_upsampling_gives_the_same_result():
  plain, fused = _tiny(), _tiny(fused_upsampling=True)
  want = plain(_cubes())
  fused.build(_SHAPE)
  fused.set_weights(plain.get_weights())
  np.testing.assert_allclose(fused(_cubes()), want, atol=1e-6)


@pytest.mark.parametrize('shape', [(1, 4, 4, 4, 1), (3, 16, 8, 20, 1)])
def test_any_fitting_shape(shape):
  assert _tiny()(_cubes(shape)).shape == shape


def test_output_channels():
  assert _tiny(output_channels=3)(_cubes()).shape == (*_SHAPE[:4], 3)


@pytest.mark.parametrize('built', [True, False])
@pytest.mark.parametrize(
  'shape', [(2, 8, 8, 6, 1), (2, 8, 8, 8), (2, 8, 8, 8, 3), (2, 0, 8, 8, 1)]
)
def test_wrong_shapes_give_one_clear_line(shape, built):
  model = _tiny()
  if built:
    model.build(_SHAPE)
  with pytest.raises(ValueError, match='wanted') as raised:
    model(np.zeros(shape, np.float32))
  assert str(raised.value) == (
    f'cubes have shape {shape}, wanted (batch, x, y, z, 1) with x, y and z '
    'multiples of 4 (depth 3): crop or pad the cubes'
  )


def test_refuses_a_depth_of_one():
  with pytest.raises(ValueError, match='depth is 1, wanted at least 2'):
    unet3d.UNet3D(depth=1)


@pytest.mark.parametrize('upsampling', ['nearest', 'transposed'])
def test_saving_gives_the_same_bits(tmp_path, upsampling):
  model = _tiny(upsampling=upsampling, name='my_net')
  model(_cubes(), training=True)
  want = model(_cubes()).numpy()
  path = str(tmp_path / 'model.keras')
  model.save(path)
  loaded = keras.saving.load_model(path)
  assert isinstance(loaded, unet3d.UNet3D)
  assert loaded.get_config() == model.get_config()
  np.testing.assert_array_equal(loaded(_cubes()), want)


def test_mixed_precision():
  model = _tiny(dtype='mixed_bfloat16', fused_upsampling=True)
  assert model(_cubes()).dtype == tf.float32
  assert model.embed(_cubes()).dtype == tf.float32
  assert model.encoder(_cubes())[0].dtype == tf.bfloat16
  assert model.encoder.conv_blocks[0].conv.kernel.dtype == 'float32'


def test_symbolic_call():
  assert _tiny()(keras.Input(_SHAPE[1:])).shape == (None, *_SHAPE[1:])


def test_inside_dataset_map():
  model = _tiny()
  want = model(_cubes()).numpy()
  dataset = tf.data.Dataset.from_tensors(_cubes()).map(model)
  np.testing.assert_allclose(next(iter(dataset)), want, atol=1e-6)


@pytest.mark.parametrize('fused', [False, True])
def test_compiles_with_xla(fused):
  model = _tiny(fused_upsampling=fused)
  want = model(_cubes()).numpy()
  got = tf.function(model, jit_compile=True)(tf.constant(_cubes()))
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('synchronized', [False, True])
def test_synchronized_batch_norm_reaches_all_blocks(synchronized):
  model = _tiny(synchronized_batch_norm=synchronized)
  model.build(_SHAPE)
  layers = blocks.weight_layers(model)
  found = {
    layer.synchronized for name, layer in layers.items() if name.endswith('bn')
  }
  assert found == {synchronized}
