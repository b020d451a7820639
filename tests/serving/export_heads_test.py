"""Exported decoders and heads, folded, against the Keras model."""

import json
import os

from absl.testing import flagsaver
import keras
import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import torch_variant
from transvw_tf2.models import transfer
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net
from transvw_tf2.models import word_classifier
from transvw_tf2.serving import export
from transvw_tf2.serving import functions
from transvw_tf2.training import checkpoints

_CUBE = (6, 8, 4)
_TINY = {'base_filters': 2, 'depth': 2}
_HEAD = {'num_words': 3, 'head_filters': 4}


def _randomize(model, seed=0):
  """Gives every weight a random value, as far from identity as in training."""
  model.build((None, *_CUBE, 1))
  rng = np.random.default_rng(seed)
  for variable in model.weights:
    name = variable.path.rpartition('/')[2]
    # Keeps features of about 1, so that no sigmoid is all 0 or 1.
    fan_in = max(1, np.prod(variable.shape[:-1]))
    spread = {
      'kernel': rng.normal(0, fan_in**-0.5, variable.shape),
      'gamma': rng.uniform(0.5, 2, variable.shape),
      'moving_variance': rng.uniform(0.3, 3, variable.shape),
    }
    variable.assign(spread.get(name, rng.normal(0, 0.3, variable.shape)))
  return model


def _y_net(**kwargs):
  return _randomize(
    visual_word_net.VisualWordNet(**_TINY, **_HEAD, head_units=5, **kwargs)
  )


def _torch(**kwargs):
  return _randomize(
    torch_variant.TorchVisualWordNet(**({**_TINY, **_HEAD} | kwargs))
  )


@pytest.fixture(name='model', scope='module')
def _model():
  return _y_net()


@pytest.fixture(name='exported', scope='module')
def _exported(model, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  _export(model, path)
  return path


def _export(model, path, **kwargs):
  kwargs = {'heads': functions.find_heads(model, _CUBE)} | kwargs
  export.export_encoder(model, path, {}, cube_shape=_CUBE, **kwargs)


def _hu(count=3, seed=1):
  """Cubes (B, X, Y, Z, 1) float32, also outside of the HU window."""
  rng = np.random.default_rng(seed)
  return rng.uniform(-1500, 1500, (count, *_CUBE, 1)).astype(np.float32)


def _scale(hu):
  return ((np.clip(hu, -1000, 1000) + 1000) / 2000).astype(np.float32)


def _run(loaded, signature, hu):
  ((name, value),) = loaded.signatures[signature](cubes=tf.constant(hu)).items()
  assert value.dtype == tf.float32
  return name, value.numpy()


def _assert_equal(got, want, tolerance=1e-5):
  want = np.asarray(want)
  assert np.ptp(want) > 1e-3  # not one value everywhere
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def _shapes_written(path):
  variables = tf.train.list_variables(
    os.path.join(path, 'variables', 'variables')
  )
  return sorted(tuple(shape) for _, shape in variables if shape)


def _shapes_without_batch_norm(model):
  return sorted(
    tuple(variable.shape)
    for variable in model.variables
    if variable.path.rpartition('/')[2] in ('kernel', 'bias')
  )


@pytest.mark.parametrize(
  ('make', 'want'),
  [
    (lambda: unet3d.UNet3D(**_TINY), ('restore',)),
    (
      lambda: word_classifier.WordClassifier(3, **_TINY),
      ('classify_word',),
    ),
    (_y_net, ('restore', 'classify_word')),
    (lambda: transfer.Classifier(2, **_TINY), ('predict',)),
    (_torch, ('restore', 'classify_word')),
    (lambda: _torch(has_decoder=False, num_words=None), ()),
  ],
)
def test_a_network_has_heads_for_its_parts(make, want):
  assert functions.find_heads(make(), _CUBE) == want


def test_heads_and_encoder_equal_the_keras_model(model, exported):
  loaded = tf.saved_model.load(exported)
  hu = _hu()
  want = model(_scale(hu))
  name, restored = _run(loaded, 'restore', hu)
  assert name == 'restored'
  _assert_equal(restored, want['restored'] * 2000 - 1000)
  name, probabilities = _run(loaded, 'classify_word', hu)
  assert name == 'probabilities'
  _assert_equal(probabilities, want['words'])
  np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
  _assert_equal(_run(loaded, 'embed_cubes', hu)[1], want['embedding'])


def test_only_kernels_and_biases_are_written(model, exported):
  got = _shapes_written(exported)
  # 4 blocks down, 2 up, that of the head, 2 dense layers, the last convolution.
  assert len(got) == 2 * (4 + 2 + 1 + 2 + 1)
  assert got == _shapes_without_batch_norm(model)


def test_metadata_describes_the_heads(exported):
  with open(os.path.join(exported, 'transvw_model.json')) as file:
    found = json.load(file)['signatures']
  assert found['restore'] == {
    'inputs': [
      {
        'name': 'cubes',
        'dtype': 'float32',
        'shape': [None, 6, 8, 4, 1],
        'unit': 'HU',
      }
    ],
    'outputs': [
      {
        'name': 'restored',
        'dtype': 'float32',
        'shape': [None, 6, 8, 4, 1],
        'unit': 'HU',
      }
    ],
  }
  assert found['classify_word']['outputs'] == [
    {
      'name': 'probabilities',
      'dtype': 'float32',
      'shape': [None, 3],
      'unit': 'probability, 0 to 1',
    }
  ]


def test_the_trained_model_is_left_as_it_is(tmp_path):
  model = _y_net()
  before = model.get_weights()
  want = model(_scale(_hu()), training=False)
  _export(model, str(tmp_path / 'model'))
  for got, old in zip(model.get_weights(), before, strict=True):
    np.testing.assert_array_equal(got, old)
  for name, value in model(_scale(_hu()), training=False).items():
    np.testing.assert_array_equal(value, want[name])
  block = model.encoder.conv_blocks[0]
  model(_scale(_hu()), training=True)  # it can still be trained
  assert np.any(block.batch_norm.moving_mean != before[4])


@pytest.mark.parametrize(
  'settings',
  [
    {'fused_upsampling': True},
    {'upsampling': 'transposed'},
    {'skip_connections': False, 'synchronized_batch_norm': True},
  ],
)
def test_decoders_of_all_kinds(settings, tmp_path):
  model = _y_net(**settings)
  path = str(tmp_path / 'model')
  _export(model, path)
  function = tf.saved_model.load(path).signatures['restore']
  spec = function.structured_outputs['restored']
  assert tuple(spec.shape) == (None, *_CUBE, 1)
  got = function(cubes=tf.constant(_hu()))['restored'].numpy()
  _assert_equal(got, model(_scale(_hu()))['restored'] * 2000 - 1000)


def test_a_frozen_network(tmp_path):
  """Freezing must not change which weight is copied to which."""
  model = _y_net()
  model.encoder.trainable = False
  path = str(tmp_path / 'model')
  _export(model, path)
  got = _run(tf.saved_model.load(path), 'classify_word', _hu())[1]
  _assert_equal(got, model(_scale(_hu()))['words'])


def test_bfloat16_gives_float32(tmp_path):
  model = _y_net(dtype='mixed_bfloat16')
  path = str(tmp_path / 'model')
  _export(model, path)
  loaded = tf.saved_model.load(path)
  want = model(_scale(_hu()))
  # The folded kernel is rounded once, that of the model with its factors.
  _assert_equal(_run(loaded, 'embed_cubes', _hu())[1], want['embedding'], 0.03)
  _assert_equal(_run(loaded, 'classify_word', _hu())[1], want['words'], 0.03)
  restored = _run(loaded, 'restore', _hu())[1]
  _assert_equal(restored, want['restored'] * 2000 - 1000, 0.03)
  assert _shapes_written(path) == _shapes_without_batch_norm(model)


def test_the_variant_of_pytorch_is_folded_with_its_epsilon(tmp_path):
  model = _torch()
  path = str(tmp_path / 'model')
  _export(model, path)
  loaded = tf.saved_model.load(path)
  want = model(_scale(_hu()))
  _assert_equal(_run(loaded, 'classify_word', _hu())[1], want['words'])
  restored = _run(loaded, 'restore', _hu())[1]
  _assert_equal(restored, want['restored'] * 2000 - 1000)
  assert _shapes_written(path) == _shapes_without_batch_norm(model)


def test_a_head_that_is_not_there_is_one_line(tmp_path):
  model = word_classifier.WordClassifier(3, **_TINY)
  with pytest.raises(
    errors.UserError,
    match=r"'restore' is asked for, but WordClassifier .* of: classify_word$",
  ):
    _export(model, str(tmp_path / 'model'), heads=['restore'])
  assert os.listdir(tmp_path) == []


def _write_run(folder, model, **description):
  folder.mkdir()
  checkpoints.write_description(
    str(folder),
    {
      'model': keras.saving.serialize_keras_object(model),
      'shape': _CUBE,
      'volume': 'cube',
      **description,
    },
  )
  checkpoints.Checkpoints(
    str(folder), model=model, progress=checkpoints.Progress()
  ).save_best(1)
  return str(folder)


def _export_run(workdir, tmp_path, **kwargs):
  path = str(tmp_path / 'model')
  export.export_workdir(workdir, path, 'best', **kwargs)
  return _load(path)


def _load(path):
  with open(os.path.join(path, 'transvw_model.json')) as file:
    return tf.saved_model.load(path), json.load(file)


_EMBED = {'serving_default', 'embed_cubes', 'embed_cubes_int16', 'embed_bytes'}


@pytest.mark.parametrize('whole', [False, True])
def test_a_fine_tuned_classifier_predicts(tmp_path, whole):
  model = _randomize(transfer.Classifier(2, **_TINY))
  workdir = _write_run(
    tmp_path / 'run', model, task='Classification', classes=['no', 'nodule']
  )
  loaded, metadata = _export_run(workdir, tmp_path, whole=whole)
  assert set(loaded.signatures) == _EMBED | {'predict'}
  assert metadata['classes'] == ['no', 'nodule'] and metadata['words'] == []
  want = model(_scale(_hu()))
  name, got = _run(loaded, 'predict', _hu())
  assert name == 'probabilities'
  _assert_equal(got, want['probabilities'])
  _assert_equal(_run(loaded, 'embed_cubes', _hu())[1], want['embedding'])


@pytest.mark.parametrize('whole', [False, True])
def test_a_fine_tuned_unet_segments(tmp_path, whole):
  model = _randomize(unet3d.UNet3D(**_TINY))
  workdir = _write_run(tmp_path / 'run', model, task='Segmentation')
  loaded, metadata = _export_run(workdir, tmp_path, whole=whole)
  assert set(loaded.signatures) == _EMBED | {'segment'}
  name, got = _run(loaded, 'segment', _hu())
  assert name == 'probabilities'
  _assert_equal(got, model(_scale(_hu())))
  (output,) = metadata['signatures']['segment']['outputs']
  assert output['unit'] == 'probability, 0 to 1'
  assert output['shape'] == [None, *_CUBE, 1]


def test_the_flag_adds_the_heads_of_pre_training(model, tmp_path, import_main):
  words = ['a', 'b', 'c']
  workdir = _write_run(tmp_path / 'run', model, task='Pretrain', words=words)
  loaded, metadata = _export_run(workdir, tmp_path)
  assert set(loaded.signatures) == set(metadata['signatures']) == _EMBED
  path = str(tmp_path / 'whole')
  main = import_main('transvw_tf2.export').main
  with flagsaver.flagsaver(workdir=workdir, output=path, whole=True):
    main(['export'])
  loaded, metadata = _load(path)
  assert set(loaded.signatures) == _EMBED | {'restore', 'classify_word'}
  assert metadata['words'] == words
  assert metadata['training'] == {
    'checkpoint': 'best',
    'task': 'Pretrain',
    'epoch': 0,
    'val_loss': None,  # before the first epoch it is infinite
  }


@pytest.mark.parametrize('make', [_y_net, _torch])
def test_a_file_of_weights_is_exported(make, tmp_path, import_main):
  source, path = str(tmp_path / 'official.keras'), str(tmp_path / 'model')
  model = make()
  model.save(source)
  main = import_main('transvw_tf2.export').main
  with flagsaver.flagsaver(workdir=source, output=path, whole=True):
    main(['export'])
  loaded, metadata = _load(path)
  assert set(loaded.signatures) == _EMBED | {'restore', 'classify_word'}
  assert metadata['cube_shape'] == [64, 64, 32]
  assert metadata['training'] == {'weights': 'official.keras'}
  hu = np.random.default_rng(3).integers(-1200, 1200, (2, 64, 64, 32, 1))
  want = model(_scale(hu.astype(np.float32)))
  for signature, name in (
    ('embed_cubes', 'embedding'),
    ('classify_word', 'words'),
  ):
    _, got = _run(loaded, signature, hu.astype(np.float32))
    _assert_equal(got, want[name])


def test_a_file_that_holds_no_network_is_one_line(tmp_path):
  path = tmp_path / 'text.keras'
  path.write_text('no network')
  for name in ('text.keras', 'none.keras'):
    with pytest.raises(errors.UserError, match=f'{name} cannot be loaded'):
      _export_run(str(tmp_path / name), tmp_path)
  # A run may be called so.
  _export_run(_write_run(tmp_path / 'run.keras', _y_net()), tmp_path)


def test_the_flag_averages_parts_of_a_cube(model, tmp_path, import_main):
  workdir = _write_run(tmp_path / 'run', model, task='Pretrain')
  path = str(tmp_path / 'parts')
  main = import_main('transvw_tf2.export').main
  for grid in (['2', '1'], ['2', '1', 'x'], ['']):
    with (
      flagsaver.flagsaver(workdir=workdir, output=path, pooling_grid=grid),
      pytest.raises(errors.UserError, match=r'--pooling_grid is .*such as 2,'),
    ):
      main(['export'])
  assert not os.path.exists(path)
  with flagsaver.flagsaver(
    workdir=workdir, output=path, pooling_grid=['1', '2', '1']
  ):
    main(['export'])
  _, metadata = _load(path)
  assert metadata['pooling_grid'] == [1, 2, 1]
  assert metadata['embedding_size'] == 2 * model.embedding_size


def test_what_the_run_recorded_is_in_the_metadata(model, tmp_path):
  workdir = _write_run(tmp_path / 'run', model, task='Pretrain')
  source = {'commit': 'abc', 'local_changes': True}
  recorded = {'epochs': 3, 'best_validation': {'loss': 0.1}}
  path = tmp_path / 'run' / 'summary.json'
  path.write_text(json.dumps({'source': source, **recorded}))
  _, metadata = _export_run(workdir, tmp_path)
  assert metadata['source'] == source
  assert metadata['training']['run'] == recorded
  path.write_text('{')
  with pytest.raises(errors.UserError, match=r'summary\.json cannot be read'):
    _export_run(workdir, tmp_path, overwrite=True)


@pytest.mark.parametrize(
  'recorded', [[], [{'epochs': 3}], 'text', 3, None, {'source': ['abc']}]
)
def test_a_record_of_the_run_that_is_none(model, tmp_path, recorded):
  workdir = _write_run(tmp_path / 'run', model, task='Pretrain')
  path = tmp_path / 'run' / 'summary.json'
  path.write_text(json.dumps(recorded))
  with pytest.raises(
    errors.UserError, match=r'summary\.json is not what training writes'
  ) as caught:
    _export_run(workdir, tmp_path)
  assert '\n' not in str(caught.value)
  assert os.listdir(tmp_path) == ['run']


def test_an_autoencoder_has_no_whole(tmp_path):
  model = _randomize(unet3d.UNet3D(**_TINY))
  workdir = _write_run(tmp_path / 'run', model, volume='thumbnail')
  with pytest.raises(errors.UserError, match='leave --whole out'):
    _export_run(workdir, tmp_path, whole=True)
  assert os.listdir(tmp_path) == ['run']
