"""Loaded networks give what the published ones give from the same file."""

import dataclasses

import keras
import numpy as np
import pytest

from tests.convert import published_files
from tests.convert import reference
from transvw_tf2 import convert
from transvw_tf2 import errors
from transvw_tf2.convert import files
from transvw_tf2.convert import network
from transvw_tf2.models import torch_variant
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net
from transvw_tf2.models import word_classifier

_OUTPUTS = {
  'y_net': {'restored', 'words', 'embedding'},
  'u_net': {'restored', 'embedding'},
  'v_net': {'restored', 'embedding'},
  'genesis': {'restored', 'embedding'},
  'encoder': {'words', 'embedding'},
  'torch': {'restored', 'words', 'embedding'},
  'torch_u_net': {'restored', 'embedding'},
  'torch_words': {'words', 'embedding'},
}


def _cubes(shape=(2, 16, 24, 8, 1)):
  return np.random.default_rng(5).random(shape, np.float32)


def _assert_near(got, want):
  assert set(got) == set(want)
  for name, value in want.items():
    assert got[name].dtype == 'float32'
    limit = 1e-4 * np.abs(value).max()
    np.testing.assert_allclose(got[name], value, rtol=0, atol=limit)
    assert np.std(value) > 10 * limit  # else a constant would pass


@pytest.mark.parametrize(
  ('kind', 'whole'),
  [
    *(('y_net', True), ('u_net', True), ('v_net', False)),
    *(('genesis', True), ('genesis', False), ('encoder', True)),
  ],
)
def test_keras_files_equal_numpy(kind, whole, tmp_path):
  path = str(tmp_path / 'official.h5')
  layers = published_files.draw(kind)
  suffixes = ('depth_3_conv', 'depth_4_bn')
  published_files.write_h5(path, layers, whole, suffixes)
  layers = published_files.read_h5(path)
  want = reference.KerasNetwork(layers).outputs(_cubes(), kind)
  assert set(want) == _OUTPUTS[kind]
  model = convert.load(path)
  _assert_near(model(_cubes()), want)
  np.testing.assert_allclose(
    model.embed(_cubes()), want['embedding'], rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  ('kind', 'batch_statistics', 'prefix'),
  [
    ('torch', False, ''),
    ('torch', True, 'module.'),
    ('torch_u_net', False, 'module.'),
    ('torch_words', True, 'module.classficationNet.'),
  ],
)
def test_pytorch_files_equal_pytorch(kind, batch_statistics, prefix, tmp_path):
  pytest.importorskip('torch')
  path = str(tmp_path / 'official.pt')
  layers = published_files.draw(kind)
  more = ('projection_head.0.weight', 'prototypes.weight')
  published_files.write_pt(path, layers, prefix, more)
  want = reference.torch_outputs(
    published_files.torch_state(layers), _cubes(), batch_statistics
  )
  assert set(want) == _OUTPUTS[kind]
  model = convert.load(path, batch_statistics=batch_statistics)
  _assert_near(model(_cubes()), want)
  np.testing.assert_allclose(
    model.embed(_cubes()), want['embedding'], rtol=1e-4, atol=1e-6
  )


def test_statistics_of_batches_make_a_difference_and_stay(tmp_path):
  pytest.importorskip('torch')
  path = str(tmp_path / 'official.pt')
  published_files.write_pt(path, published_files.draw('torch'))
  running = convert.load(path)
  model = convert.load(path, batch_statistics=True)
  assert np.abs(model.embed(_cubes()) - running.embed(_cubes())).max() > 0.01
  model(_cubes())
  for one, other in zip(model.weights, running.weights, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('kind', ['y_net', 'genesis', 'encoder', 'torch'])
def test_what_convert_wrote_gives_the_same(kind, tmp_path):
  source, path = str(tmp_path / 'official'), str(tmp_path / 'ours.keras')
  layers = published_files.draw(kind)
  if kind == 'torch':
    pytest.importorskip('torch')
    published_files.write_pt(source, layers)
  else:
    published_files.write_h5(source, layers)
  files.convert(source, path)
  want, got = convert.load(source)(_cubes()), convert.load(path)(_cubes())
  assert set(got) == _OUTPUTS[kind]
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value)


def test_any_size_is_told_from_the_shapes(tmp_path):
  path = str(tmp_path / 'official.h5')
  sizes = {'words': 5, 'head_filters': 9, 'head_units': 4}
  layers = published_files.draw('y_net', base=3, **sizes)
  published_files.write_h5(path, layers)
  config = convert.load(path).get_config()
  assert (config['num_words'], config['base_filters']) == (5, 3)
  assert (config['head_filters'], config['head_units']) == (9, 4)
  assert (config['depth'], config['skip_connections']) == (4, True)


def _count(layers, trainable):
  return sum(
    array.size
    for name, arrays in layers.items()
    for array in arrays[: 2 if trainable else None]
  )


@pytest.mark.parametrize(
  ('kind', 'network', 'trainable', 'parameters'),
  [
    ('y_net', visual_word_net.VisualWordNet, 23_970_093, 23_975_789),
    ('genesis', unet3d.UNet3D, 16_320_257, None),
    ('v_net', unet3d.UNet3D, 13_997_825, None),
    ('encoder', word_classifier.WordClassifier, None, None),
    ('torch', torch_variant.TorchVisualWordNet, 33_277_613, None),
  ],
)
def test_parameters_of_the_published_sizes(
  kind, network, trainable, parameters, tmp_path
):
  """Counts are those of the published weights."""
  path = str(tmp_path / 'official')
  sizes = {'words': 44, 'head_filters': 512, 'head_units': 1024}
  if kind == 'torch':
    pytest.importorskip('torch')
    sizes['head_filters'] = 1024
  layers = published_files.draw(kind, base=32, **sizes)
  if trainable:
    assert _count(layers, trainable=True) == trainable
  if kind == 'torch':
    published_files.write_pt(path, layers)
  else:
    published_files.write_h5(path, layers)
  model = convert.load(path)
  assert isinstance(model, network)
  assert model.embedding_size == 512
  assert model.count_params() == _count(layers, trainable=False)
  counted = sum(int(np.prod(one.shape)) for one in model.trainable_weights)
  assert counted == _count(layers, trainable=True)
  assert parameters in (None, model.count_params())


@pytest.mark.long
@pytest.mark.parametrize('kind', ['y_net', 'torch'])
def test_the_published_sizes_give_the_same_outputs(kind, tmp_path):
  path = str(tmp_path / 'official')
  cubes = _cubes((2, 64, 64, 32, 1))
  if kind == 'torch':
    pytest.importorskip('torch')
    layers = published_files.draw(kind, 32, words=44, head_filters=1024)
    published_files.write_pt(path, layers)
    state = published_files.torch_state(layers)
    for batch_statistics in (False, True):
      model = convert.load(path, batch_statistics=batch_statistics)
      want = reference.torch_outputs(state, cubes, batch_statistics)
      _assert_near(model(cubes), want)
    return
  sizes = {'words': 44, 'head_filters': 512, 'head_units': 1024}
  published_files.write_h5(path, published_files.draw(kind, 32, **sizes))
  layers = published_files.read_h5(path)
  want = reference.KerasNetwork(layers).outputs(cubes, kind)
  _assert_near(convert.load(path)(cubes), want)


def test_the_lines_of_the_documentation_work(tmp_path):
  path = str(tmp_path / 'TransVW_chest_ct.h5')
  published_files.write_h5(path, published_files.draw('y_net'))
  text = '\n'.join(
    line.removeprefix('  ')
    for line in convert.__doc__.splitlines()[2:]
    if line.startswith('  ')
  )
  text = text.replace('TransVW_chest_ct.h5', path)
  text = text.replace('(64, 64, 32, 1)', '(16, 16, 8, 1)')
  cubes = _cubes((2, 16, 16, 8, 1))
  space = {'keras': keras, 'cubes': cubes, 'labels': np.eye(2)}
  exec(text.partition('\n')[2], space)
  assert space['embeddings'].shape == (2, 32)
  assert space['segmentation'](cubes).shape == cubes.shape
  assert space['classifier'].predict(cubes, verbose=0).shape == (2, 2)


def test_networks_that_are_none_of_this_package(tmp_path):
  path = str(tmp_path / 'official.h5')
  published_files.write_h5(path, published_files.draw('y_net'))
  fitted = network.fit(files.read(path))

  def build(sizes, **changes):
    sizes = dataclasses.replace(fitted.sizes, **sizes)
    return network.build(dataclasses.replace(fitted, sizes=sizes, **changes))

  with pytest.raises(errors.UserError, match='restores 2 channels is none of'):
    build({'output_channels': 2})
  for sizes in (
    {'skip_connections': False, 'transposed': True},
    {'skip_connections': True, 'transposed': False},
  ):
    with pytest.raises(errors.UserError, match='of PyTorch, without skip'):
      build(sizes, epsilon=torch_variant.EPSILON)


def test_batch_statistics_are_for_pytorch_alone(tmp_path):
  path = str(tmp_path / 'official.h5')
  published_files.write_h5(path, published_files.draw('y_net'))
  with pytest.raises(errors.UserError, match='not of the PyTorch release'):
    convert.load(path, batch_statistics=True)
