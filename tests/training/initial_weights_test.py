"""Networks that start from the weights of others."""

import keras
import numpy as np
import pytest

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.models import blocks
from transvw_tf2.training import initial_weights

_SIZES = {'base_filters': 2, 'depth': 3}
_HEAD = {'head_filters': 4, 'head_units': 4}


def _build(kind, seed, **settings):
  keras.utils.set_random_seed(seed)
  settings = _SIZES | settings
  if kind == 'unet3d':
    model = models.build_unet3d(**settings)
  elif kind == 'word_classifier':
    model = models.build_word_classifier(num_words=3, **settings)
  else:
    settings = {'num_words': 3} | _HEAD | settings
    model = models.build_visual_word_net(**settings)
  model.build((None, *tiny_data.CUBE_SHAPE, 1))
  rng = np.random.default_rng(seed)
  for variable in model.variables:  # biases and statistics too
    variable.assign(rng.random(variable.shape))
  return model


def _weights(model):
  return {
    (name, index): value
    for name, layer in blocks.weight_layers(model).items()
    for index, value in enumerate(layer.get_weights())
  }


def _saved(model, tmp_path):
  path = str(tmp_path / 'network.keras')
  model.save(path)
  return path


# Layers of depth 3: 0..5 down, 6..9 up, 10 in the head.
_ENCODER = {f'depth_{n}_{part}' for n in range(6) for part in ('conv', 'bn')}
_DECODER = {
  f'depth_{n}_{part}' for n in range(6, 10) for part in ('conv', 'bn')
} | {'final_conv'}
_HEAD_LAYERS = {'depth_10_conv', 'depth_10_bn', 'cls_fc', 'cls_output'}


@pytest.mark.parametrize(
  ('source', 'target', 'changes', 'copied'),
  [
    ('unet3d', 'visual_word_net', {}, _ENCODER | _DECODER),
    ('word_classifier', 'visual_word_net', {}, _ENCODER),
    (
      'visual_word_net',
      'visual_word_net',
      {'fused_upsampling': True},
      _ENCODER | _DECODER | _HEAD_LAYERS,
    ),
    # Another number of words: a new head, as a whole.
    ('visual_word_net', 'visual_word_net', {'num_words': 5}, None),
    # A decoder without skip connections has other shapes.
    ('unet3d', 'unet3d', {'skip_connections': False}, _ENCODER),
    ('visual_word_net', 'word_classifier', {}, _ENCODER),
  ],
)
def test_common_parts_are_copied_and_others_stay(
  source, target, changes, copied, tmp_path
):
  copied = _ENCODER | _DECODER if copied is None else copied
  path = _saved(_build(source, seed=1), tmp_path)
  theirs = _weights(_build(source, seed=1))
  model = _build(target, seed=2, **changes)
  before = _weights(model)
  line = initial_weights.start_from(model, path)
  for (name, index), value in _weights(model).items():
    want = theirs if name in copied else before
    np.testing.assert_array_equal(value, want[name, index], err_msg=name)
  assert ('new: ' in line) == (copied < {name for name, _ in before})


def test_an_encoder_of_another_size_is_refused(tmp_path):
  path = _saved(_build('unet3d', seed=1, base_filters=4), tmp_path)
  with pytest.raises(errors.UserError, match='the encoder does not fit'):
    initial_weights.start_from(_build('unet3d', seed=2), path)
  path = _saved(_build('unet3d', seed=1, depth=2), tmp_path)
  with pytest.raises(errors.UserError, match='other layers'):
    initial_weights.start_from(_build('unet3d', seed=2), path)


def test_what_is_no_network_is_one_line(tmp_path):
  model = _build('unet3d', seed=2)
  for name in ('none.keras', 'NOPE'):
    path = str(tmp_path / name)
    with pytest.raises(errors.UserError) as raised:
      initial_weights.start_from(model, path)
    assert f'train.start_from {path!r} does not exist: give' in str(
      raised.value
    )
  (tmp_path / 'text.keras').write_text('no network')
  with pytest.raises(errors.UserError, match='cannot be loaded'):
    initial_weights.start_from(model, str(tmp_path / 'text.keras'))
  with pytest.raises(errors.UserError, match=r'no model\.json'):
    initial_weights.start_from(model, str(tmp_path))
  other = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
  other.save(str(tmp_path / 'other.keras'))
  with pytest.raises(errors.UserError, match='holds a Sequential'):
    initial_weights.start_from(model, str(tmp_path / 'other.keras'))


def test_another_epsilon_does_not_change_what_is_computed(tmp_path):
  source = models.build_torch_visual_word_net(
    num_words=3, head_filters=4, **_SIZES
  )
  source.build((None, *tiny_data.CUBE_SHAPE, 1))
  rng = np.random.default_rng(1)
  for variable in source.variables:
    # Variances as small as the epsilons.
    small = 1e-3 if variable.name == 'moving_variance' else 1.0
    variable.assign(small * rng.random(variable.shape))
  model = models.build_classifier(2, **_SIZES)
  model.build((None, *tiny_data.CUBE_SHAPE, 1))
  initial_weights.start_from(model, _saved(source, tmp_path))
  assert model.encoder.conv_blocks[0].batch_norm.epsilon == 1e-3
  assert source.encoder.conv_blocks[0].batch_norm.epsilon == 1e-5
  cubes = rng.random((2, *tiny_data.CUBE_SHAPE, 1)).astype(np.float32)
  want = np.asarray(source.embed(cubes))
  np.testing.assert_allclose(model.embed(cubes), want, rtol=1e-4)
