"""The exported encoder against the Keras model and the contract."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import torch_variant
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures
from transvw_tf2.training import summary

_CUBE = (8, 12, 4)
_BYTES = 2 * 8 * 12 * 4


@pytest.fixture(name='model', scope='module')
def _model():
  model = visual_word_net.VisualWordNet(
    num_words=3, base_filters=2, depth=3, head_filters=4, head_units=5
  )
  cubes = np.random.default_rng(0).random((4, *_CUBE, 1), np.float32)
  model(cubes, training=True)  # moves the moving statistics
  return model


@pytest.fixture(name='exported', scope='module')
def _exported(model, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  export.export_encoder(
    model, path, {'epoch': 7}, cube_shape=_CUBE, words=['a', 'b', 'c']
  )
  return path


@pytest.fixture(name='loaded', scope='module')
def _loaded(exported):
  return tf.saved_model.load(exported)


def _hu(count=3, seed=1):
  """Cubes (B, X, Y, Z, 1) int16, also outside of the HU window."""
  rng = np.random.default_rng(seed)
  return rng.integers(-2000, 3000, (count, *_CUBE, 1)).astype(np.int16)


def _embed(loaded, signature, **inputs):
  inputs = {name: tf.constant(value) for name, value in inputs.items()}
  return loaded.signatures[signature](**inputs)['embedding'].numpy()


def _embed_bytes(loaded, hu):
  strings = [cube.astype('<i2').tobytes() for cube in hu]
  return _embed(loaded, 'embed_bytes', bytes=np.array(strings, object))


def test_signatures_are_those_of_the_contract(loaded):
  want = {
    'serving_default': ('cubes', tf.float32, (None, *_CUBE, 1)),
    'embed_cubes': ('cubes', tf.float32, (None, *_CUBE, 1)),
    'embed_cubes_int16': ('cubes', tf.int16, (None, *_CUBE, 1)),
    'embed_bytes': ('bytes', tf.string, (None,)),
  }
  assert set(loaded.signatures) == set(want)
  for name, (argument, dtype, shape) in want.items():
    function = loaded.signatures[name]
    ((got, spec),) = function.structured_input_signature[1].items()
    assert (got, spec.dtype, tuple(spec.shape)) == (argument, dtype, shape)
    ((output, spec),) = function.structured_outputs.items()
    assert (output, spec.dtype) == ('embedding', tf.float32)
    assert tuple(spec.shape) == (None, 16)


def test_equals_the_keras_model(model, loaded):
  hu = _hu()
  scaled = (np.clip(hu.astype(np.float64), -1000, 1000) + 1000) / 2000
  want = model(scaled.astype(np.float32))['embedding'].numpy()
  assert np.ptp(want) > 1e-3
  got = _embed(loaded, 'serving_default', cubes=hu.astype(np.float32))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_all_signatures_agree(loaded):
  hu = _hu()
  want = _embed(loaded, 'serving_default', cubes=hu.astype(np.float32))
  for got in (
    _embed(loaded, 'embed_cubes', cubes=hu.astype(np.float32)),
    _embed(loaded, 'embed_cubes_int16', cubes=hu),
    _embed_bytes(loaded, hu),
  ):
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_bfloat16_is_near_float32(model, loaded, tmp_path):
  path = str(tmp_path / 'model')
  export.export_encoder(model, path, {}, cube_shape=_CUBE, precision='bfloat16')
  with open(os.path.join(path, 'transvw_model.json')) as file:
    assert json.load(file)['precision'] == 'bfloat16'
  halved = tf.saved_model.load(path)
  hu = _hu()
  want = _embed(loaded, 'embed_cubes_int16', cubes=hu)
  got = _embed(halved, 'embed_cubes_int16', cubes=hu)
  assert got.dtype == np.float32
  difference = np.abs(got - want).max() / np.abs(want).max()
  # It has 8 bits: in float32 they would agree to 1e-6.
  assert 1e-4 < difference < 0.03
  cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1)
  assert (cosine / np.linalg.norm(want, axis=1) > 0.999).all()
  np.testing.assert_allclose(_embed_bytes(halved, hu), got, atol=1e-6)


def test_parts_of_a_cube_are_averaged_apart(model, tmp_path):
  path = str(tmp_path / 'model')
  export.export_encoder(
    model, path, {}, cube_shape=_CUBE, pooling_grid=(2, 3, 1)
  )
  hu = _hu()
  scaled = (hu.clip(-1000, 1000).astype(np.float32) + 1000) / 2000
  features = model.encoder(scaled, training=False)[0].numpy()
  features = np.moveaxis(features, 1, 3)  # (B, 2, 3, 1, 16)
  np.testing.assert_allclose(
    _embed(tf.saved_model.load(path), 'embed_cubes_int16', cubes=hu),
    features.reshape(len(hu), -1),
    atol=1e-5 * features.max(),
  )
  with open(os.path.join(path, 'transvw_model.json')) as file:
    metadata = json.load(file)
  assert metadata['embedding_size'] == 6 * 16
  assert metadata['pooling_grid'] == [2, 3, 1]
  assert encoders.load(path, 'cubes').embedding_size == 6 * 16


def test_unequal_parts_are_refused(model, tmp_path):
  with pytest.raises(errors.UserError, match=r'4, 1, 1.* divide .*2, 3, 1'):
    export.export_encoder(
      model,
      str(tmp_path / 'model'),
      {},
      cube_shape=_CUBE,
      pooling_grid=(4, 1, 1),
    )
  assert not os.listdir(tmp_path)


def test_a_network_whose_cubes_depend_on_their_batch_is_refused(tmp_path):
  model = torch_variant.TorchVisualWordNet(
    3, base_filters=2, depth=3, batch_statistics=True
  )
  with pytest.raises(errors.UserError, match='load it with batch_statistics=F'):
    export.export_encoder(model, str(tmp_path / 'model'), {}, cube_shape=_CUBE)
  assert not os.listdir(tmp_path)


def test_bytes_are_in_c_order_of_x_y_z(loaded):
  hu = np.full((1, *_CUBE, 1), -1000, np.int16)
  hu[0, 5, 9, 1] = 900
  flat = np.full(_BYTES // 2, -1000, '<i2')
  flat[(5 * 12 + 9) * 4 + 1] = 900
  got = _embed(loaded, 'embed_bytes', bytes=np.array([flat.tobytes()], object))
  want = _embed(loaded, 'embed_cubes_int16', cubes=hu)
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('count', [1, 5])
def test_any_batch(loaded, count):
  hu = _hu(count)
  strings = tf.constant([cube.tobytes() for cube in hu], tf.string)
  got = loaded.signatures['embed_bytes'](bytes=strings)['embedding']
  assert got.shape == (count, 16)
  assert _embed(loaded, 'embed_cubes_int16', cubes=hu).shape == (count, 16)


def test_results_do_not_depend_on_the_rest_of_the_batch(loaded):
  hu = _hu()
  together = _embed(loaded, 'embed_cubes_int16', cubes=hu)
  alone = _embed(loaded, 'embed_cubes_int16', cubes=hu[1:2])
  np.testing.assert_allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.parametrize(
  'lengths', [[_BYTES - 2], [0], [2 * _BYTES], [_BYTES, _BYTES + 1]]
)
def test_wrong_byte_lengths_are_named(loaded, lengths):
  strings = tf.constant([bytes(length) for length in lengths])
  with pytest.raises(tf.errors.InvalidArgumentError) as raised:
    loaded.signatures['embed_bytes'](bytes=strings)
  message = str(raised.value)
  assert f'wanted {_BYTES} bytes per cube, little-endian int16' in message
  assert f'[{" ".join(map(str, lengths))}]' in message


def test_only_the_encoder_is_written(model, exported):
  names = [
    name
    for name, shape in tf.train.list_variables(
      os.path.join(exported, 'variables', 'variables')
    )
    if shape
  ]
  # A kernel and a bias each, no batch norm.
  assert len(names) == 2 * len(model.encoder.conv_blocks)


def test_metadata(exported):
  with open(os.path.join(exported, 'transvw_model.json')) as file:
    metadata = json.load(file)
  assert metadata.pop('package_version')
  assert 'non-commercial' in metadata.pop('license')
  assert metadata.pop('source') == summary.describe_source()
  cubes = {
    'name': 'cubes',
    'dtype': 'float32',
    'shape': [None, 8, 12, 4, 1],
    'unit': 'HU',
  }
  strings = {
    'name': 'bytes',
    'dtype': 'string',
    'shape': [None],
    'unit': 'HU as little-endian int16, [x, y, z] in C order',
  }
  embedding = {
    'name': 'embedding',
    'dtype': 'float32',
    'shape': [None, 16],
    'unit': 'none',
  }
  floats = {'inputs': [cubes], 'outputs': [embedding]}
  assert metadata.pop('orientation').startswith('LPS')
  assert metadata == {
    'axes': ['x', 'y', 'z'],
    'classes': [],
    'cube_shape': [8, 12, 4],
    'embedding_size': 16,
    'format_version': 1,
    'hu_window': [-1000, 1000],
    'precision': 'float32',
    'input': 'cubes',
    'network': 'VisualWordNet',
    'pooling_grid': [1, 1, 1],
    'signatures': {
      'serving_default': floats,
      'embed_cubes': floats,
      'embed_cubes_int16': {**floats, 'inputs': [{**cubes, 'dtype': 'int16'}]},
      'embed_bytes': {**floats, 'inputs': [strings]},
    },
    'training': {'epoch': 7},
    'words': ['a', 'b', 'c'],
  }


def test_default_cube_shape_and_a_model_that_was_never_called(tmp_path):
  path = str(tmp_path / 'model')
  model = unet3d.UNet3D(base_filters=1, depth=2)
  export.export_encoder(model, path, {})
  function = tf.saved_model.load(path).signatures['embed_cubes']
  spec = function.structured_input_signature[1]['cubes']
  assert tuple(spec.shape) == (None, 64, 64, 32, 1)


def test_mixed_precision_gives_float32(tmp_path):
  path = str(tmp_path / 'model')
  model = unet3d.UNet3D(base_filters=1, depth=2, dtype='mixed_bfloat16')
  export.export_encoder(model, path, {}, cube_shape=_CUBE)
  loaded = tf.saved_model.load(path)
  embedding = _embed(loaded, 'embed_cubes_int16', cubes=_hu())
  assert embedding.dtype == np.float32
  assert np.ptp(embedding) > 0


def test_the_same_network_makes_the_same_model(model, exported, tmp_path):
  path = str(tmp_path / 'model')
  export.export_encoder(
    model, path, {'epoch': 7}, cube_shape=_CUBE, words=['a', 'b', 'c']
  )
  one, other = (
    tf.saved_model.experimental.read_fingerprint(folder).singleprint()
    for folder in (exported, path)
  )
  assert one == other


def test_refuses_an_existing_output(model, exported):
  before = os.stat(os.path.join(exported, 'saved_model.pb')).st_mtime_ns
  with pytest.raises(errors.UserError, match=r'exists.*--overwrite'):
    export.export_encoder(model, exported, {}, cube_shape=_CUBE)
  after = os.stat(os.path.join(exported, 'saved_model.pb')).st_mtime_ns
  assert before == after


def test_overwrite_replaces_a_model(model, tmp_path):
  path = str(tmp_path / 'model')
  for epoch in (1, 2):
    export.export_encoder(
      model, path, {'epoch': epoch}, cube_shape=_CUBE, overwrite=True
    )
  with open(os.path.join(path, 'transvw_model.json')) as file:
    assert json.load(file)['training'] == {'epoch': 2}
  assert os.listdir(tmp_path) == ['model']  # nothing left over


def test_overwrite_spares_other_folders(model, tmp_path):
  precious = tmp_path / 'thesis.txt'
  precious.write_text('mine')
  with pytest.raises(errors.UserError, match='replaces only exported models'):
    export.export_encoder(model, str(tmp_path), {}, overwrite=True)
  assert precious.read_text() == 'mine'


def test_a_failed_export_leaves_nothing(model, tmp_path):
  path = str(tmp_path / 'model')
  with pytest.raises(TypeError):
    export.export_encoder(model, path, {'bad': object()}, cube_shape=_CUBE)
  assert os.listdir(tmp_path) == []


def test_unwritable_output_is_one_line(model, tmp_path):
  blocker = tmp_path / 'file'
  blocker.write_text('')
  with pytest.raises(errors.UserError, match='cannot be written'):
    export.export_encoder(model, str(blocker / 'model'), {}, cube_shape=_CUBE)


def test_a_full_disk_is_one_line(model, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise tf.errors.OutOfRangeError(None, None, 'File too large')

  monkeypatch.setattr(tf.saved_model, 'save', fail)
  with pytest.raises(errors.UserError, match=r'cannot be written .*too large'):
    export.export_encoder(model, str(tmp_path / 'm'), {}, cube_shape=_CUBE)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('sign', '[\\')
def test_a_path_that_is_a_pattern_is_refused(exported, model, tmp_path, sign):
  path = str(tmp_path / f'{sign}1]')
  with pytest.raises(errors.UserError, match='take for a pattern'):
    export.export_encoder(model, path, {}, cube_shape=_CUBE)
  assert not os.listdir(tmp_path)
  os.symlink(exported, path)
  with pytest.raises(errors.UserError, match=r'loaded .*: move it, for Tens'):
    encoders.load(path, signatures.CUBES)


def test_workdir_is_exported_with_its_summary(model, tmp_path, monkeypatch):
  asked = []

  def load_model(workdir, which):
    asked.append((workdir, which))
    return model, {
      'model': {},
      'shape': list(_CUBE),
      'volume': 'cube',
      'words': ['a', 'b', 'c'],
      'checkpoint': which,
      'epoch': 3,
      'val_loss': 0.5,
    }

  monkeypatch.setattr(
    export.checkpoints, 'load_model', load_model, raising=False
  )
  path = str(tmp_path / 'model')
  export.export_workdir('run', path, 'latest')
  assert asked == [('run', 'latest')]
  with open(os.path.join(path, 'transvw_model.json')) as file:
    metadata = json.load(file)
  assert metadata['training'] == {
    'checkpoint': 'latest',
    'epoch': 3,
    'val_loss': 0.5,
  }
  assert metadata['cube_shape'] == list(_CUBE)
  assert metadata['words'] == ['a', 'b', 'c']
  with pytest.raises(errors.UserError, match='exists'):
    export.export_workdir('run', path, 'latest')
  assert len(asked) == 1  # refused before the weights are read
