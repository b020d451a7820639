"""Parts of a network that may be missing in a file, when that is said."""

import os

import numpy as np
import pytest

from tests.convert import published_files
from transvw_tf2 import convert
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.convert import files
from transvw_tf2.models import blocks
from transvw_tf2.training import initial_weights


def _assert_weights(model, layers):
  for name, layer in blocks.weight_layers(model).items():
    for one, other in zip(layer.get_weights(), layers[name], strict=True):
      np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize(
  ('kind', 'gone', 'part', 'left'),
  [
    ('y_net', {'cls_output'}, 'head', {'restored', 'embedding'}),
    ('y_net', {'depth_9_bn'}, 'decoder', {'words', 'embedding'}),
    ('torch', {'depth_14_conv'}, 'head', {'restored', 'embedding'}),
    ('torch', {'final_conv'}, 'decoder', {'words', 'embedding'}),
  ],
)
def test_a_part_may_be_missing_only_when_said(kind, gone, part, left, tmp_path):
  official, path = str(tmp_path / 'official'), str(tmp_path / 'ours.keras')
  layers = published_files.draw(kind)
  layers = {name: one for name, one in layers.items() if name not in gone}
  if kind == 'torch':
    pytest.importorskip('torch')
    published_files.write_pt(official, layers)
  else:
    published_files.write_h5(official, layers)
  for allowed in ((), {'head', 'decoder'} - {part}):
    with pytest.raises(
      errors.UserError, match=rf'lacks .*missing {part} would'
    ):
      files.convert(official, path, allow_missing=allowed)
  assert os.listdir(tmp_path) == ['official']
  rows = files.convert(official, path, allow_missing=[part]).rows
  model = convert.load(path)
  cubes = np.zeros((1, 16, 16, 8, 1), np.float32)
  assert set(model(cubes)) == left
  _assert_weights(model, layers)
  reasons = {row.why for row in rows if row.state == 'left out'}
  assert f'the {part} is not whole' in reasons
  # What is left can start a training.
  fresh = models.build_visual_word_net(num_words=3, base_filters=2)
  fresh.build((None, 16, 16, 8, 1))
  assert 'encoder' in initial_weights.start_from(fresh, path)


def test_a_missing_encoder_is_never_allowed(tmp_path):
  path = str(tmp_path / 'official.h5')
  layers = published_files.draw('y_net')
  del layers['depth_3_conv']
  published_files.write_h5(path, layers)
  with pytest.raises(
    errors.UserError, match='lacks depth_3_conv/kernel, depth'
  ):
    convert.load(path, allow_missing=('head', 'decoder'))
  with pytest.raises(errors.UserError, match='wanted head or decoder'):
    files.convert(path, str(tmp_path / 'a.keras'), allow_missing=['encoder'])


@pytest.mark.parametrize('kind', ['y_net', 'torch_words'])
def test_a_whole_part_may_be_missing_only_when_said(kind, tmp_path):
  official, path = str(tmp_path / 'official'), str(tmp_path / 'ours.keras')
  layers = published_files.draw(kind)
  # A Y-Net without its decoder, an encoder of PyTorch without anything else.
  first, last = (8, 14) if kind == 'y_net' else (14, 15)
  gone = {
    f'depth_{n}_{part}' for n in range(first, last) for part in ('conv', 'bn')
  }
  gone.add('final_conv' if kind == 'y_net' else 'cls_output')
  assert gone <= set(layers)
  layers = {name: one for name, one in layers.items() if name not in gone}
  if kind == 'y_net':
    published_files.write_h5(official, layers)
  else:
    pytest.importorskip('torch')
    published_files.write_pt(official, layers)
  with pytest.raises(errors.UserError, match='missing decoder would'):
    files.convert(official, path)
  files.convert(official, path, allow_missing=['decoder'])
  _assert_weights(convert.load(path), layers)


def test_a_head_of_another_kind_may_be_left_out(tmp_path):
  """As in a network that was trained on a target task."""
  path = str(tmp_path / 'target.h5')
  layers = published_files.draw('u_net')
  head = published_files.draw('y_net')
  layers |= {f'dense_{n}': head['cls_output'] for n in (7, 8, 9)}
  published_files.write_h5(path, layers)
  with pytest.raises(errors.UserError, match='has dense_7/dense_7/kernel:0'):
    convert.load(path)
  _assert_weights(convert.load(path, allow_missing=['head']), layers)


def test_a_classifier_that_sees_the_centre_gives_its_encoder(tmp_path):
  """Its dense layer has more channels than that of any published network."""
  source, path = str(tmp_path / 'a.keras'), str(tmp_path / 'b.keras')
  model = models.build_classifier(
    num_classes=2, base_filters=2, depth=2, centre_features=True
  )
  model.build((None, None, None, None, 1))
  model.save(source)
  with pytest.raises(
    errors.UserError, match=r'cls_output/kernel \(20, 2\) .*missing head would'
  ):
    files.convert(source, path)
  rows = files.convert(source, path, allow_missing=['head']).rows
  left = {row.source: row.why for row in rows if row.state == 'left out'}
  assert left == {
    'cls_output/kernel': 'the head is not whole, for (8, 2) is wanted here',
    'cls_output/bias': 'the head is not whole',
  }
  cubes = np.random.default_rng(0).random((2, 8, 8, 8, 1), np.float32)
  outputs = convert.load(path)(cubes)
  assert set(outputs) == {'embedding'}
  np.testing.assert_array_equal(outputs['embedding'], model.embed(cubes))
  whole = convert.load(source)(cubes)
  assert set(whole) == {'probabilities', 'embedding'}


def test_a_decoder_that_does_not_fit_may_be_left_out(tmp_path):
  path = str(tmp_path / 'official.h5')
  layers = published_files.draw('y_net')
  layers['depth_9_conv'][0] = layers['depth_9_conv'][0][..., :-1]
  published_files.write_h5(path, layers)
  with pytest.raises(errors.UserError, match='missing decoder would'):
    convert.load(path, allow_missing=['head'])
  model = convert.load(path, allow_missing=['decoder'])
  _assert_weights(model, layers)
