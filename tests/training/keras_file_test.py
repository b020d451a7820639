"""Of .keras files only our networks are made, and none larger than its file."""

import io
import json
import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2.models import restoration_net
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net
from transvw_tf2.training import keras_file


def _save(path, model=None):
  model = model or unet3d.UNet3D(base_filters=1, depth=2)
  model.build((None, None, None, None, 1))
  model.save(path)
  return model


def _change(path, change):
  """Replaces the configuration by what `change` makes of it."""
  with zipfile.ZipFile(path) as archive:
    members = {one: archive.read(one) for one in archive.namelist()}
  config = change(json.loads(members['config.json']))
  members['config.json'] = json.dumps(config).encode()
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)


@pytest.mark.parametrize(
  ('kind', 'words'),
  [
    (unet3d.UNet3D, ()),
    (restoration_net.RestorationNet, ()),
    (visual_word_net.VisualWordNet, (3,)),
  ],
)
def test_our_networks_come_back(tmp_path, kind, words):
  path = str(tmp_path / 'a.keras')
  model = _save(path, kind(*words, base_filters=1, depth=2))
  again = keras_file.load_network(path)
  assert type(again) is type(model)
  for one, other in zip(again.weights, model.weights, strict=True):
    np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_another_network_is_not_made(tmp_path):
  path = str(tmp_path / 'a.keras')
  keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
  with pytest.raises(errors.UserError, match='holds a Sequential, wanted a'):
    keras_file.load_network(path)


@pytest.mark.parametrize(
  'config',
  [
    {'module': 'os', 'class_name': 'mkdir', 'config': {'path': 'canary'}},
    {
      'module': 'keras.layers',
      'class_name': 'Lambda',
      'config': {'function': {'class_name': '__lambda__', 'config': {}}},
      'registered_name': None,
    },
    {
      'module': 'os',
      'class_name': 'mkdir',
      'config': {'path': 'canary'},
      'registered_name': 'transvw_tf2>mkdir',
    },
    {'registered_name': 'x'},
    {'registered_name': 'transvw_tf2>UNet3D'},
    {},
    [],
    None,
  ],
)
def test_no_code_is_run(tmp_path, monkeypatch, config):
  monkeypatch.chdir(tmp_path)
  _save('a.keras')
  _change('a.keras', lambda _: config)
  with pytest.raises(errors.UserError, match='wanted a network of'):
    keras_file.load_network('a.keras')
  assert os.listdir() == ['a.keras']


# All that follow would take gigabytes.
_WIDE = {
  'module': 'keras.src.models.sequential',
  'class_name': 'Sequential',
  'registered_name': 'transvw_tf2>Sequential',
  'config': {
    'layers': [
      {
        'module': 'keras.layers',
        'class_name': 'Dense',
        'config': {'units': 30_000},
        'registered_name': None,
      },
    ],
    **{'base_filters': 1, 'depth': 2},
  },
  'build_config': {'input_shape': [None, 30_000]},
}
_DECODER = {
  'module': 'transvw_tf2.models.unet3d',
  'class_name': 'Decoder',
  'registered_name': 'transvw_tf2>Decoder',
  'config': {'base_filters': 1, 'depth': 2},
  'build_config': {
    'shapes_dict': {
      'bottleneck_shape': [None] * 4 + [10**7],
      'skips_shape': [[None] * 4 + [10**7]],
    }
  },
}


def _slice(config):
  settings = config['config'] | {'start': _DECODER, 'stop': 0, 'step': 1}
  return config | {'class_name': '__slice__', 'config': settings}


def _with(**settings):
  return lambda config: config | {'config': config['config'] | settings}


@pytest.mark.parametrize(
  'change',
  [
    lambda _: _WIDE,
    lambda _: _DECODER,
    # Keras makes a functional model of such settings.
    lambda config: (
      config
      | {'class_name': 'WordClassifier'}
      | {'registered_name': 'transvw_tf2>WordClassifier'}
      | {'config': {**_WIDE['config'], 'input_layers': [], 'output_layers': []}}
    ),
    _slice,
    _with(dtype=_DECODER),
    _with(dtype={**_DECODER, 'class_name': 'DTypePolicy'}),
    _with(name=[_DECODER]),
  ],
)
def test_nothing_but_a_network_is_made(tmp_path, monkeypatch, change):
  path = str(tmp_path / 'a.keras')
  _save(path)
  _change(path, change)
  monkeypatch.setattr(
    keras.saving, 'load_model', lambda *_, **__: pytest.fail('made by Keras')
  )
  with pytest.raises(errors.UserError, match='wanted a network of'):
    keras_file.load_network(path)


def test_another_precision(tmp_path):
  path = str(tmp_path / 'a.keras')
  dtype = 'mixed_bfloat16'
  _save(path, unet3d.UNet3D(base_filters=1, depth=2, dtype=dtype))
  assert keras_file.load_network(path).dtype_policy.name == dtype


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'base_filters': 10**6}, 'not safe to read'),
    ({'base_filters': 400}, 'not safe to read'),
    ({'depth': 12}, 'not safe to read'),
    ({'depth': 13}, 'depth is 13'),
    ({'depth': 10**9}, 'depth is 1000000000'),
    ({'num_words': 10**9}, 'not safe to read'),
    ({'head_units': 10**9}, 'not safe to read'),
    ({'head_filters': 10**7}, 'not safe to read'),
    ({'output_channels': 10**9}, 'not safe to read'),
    ({'base_filters': 0, 'depth': 12}, 'base_filters is not there'),
    ({'base_filters': -1}, 'base_filters is -1'),
    ({'base_filters': [2]}, r'base_filters is \[2\]'),
  ],
)
def test_sizes_are_believed_only_as_far_as_the_file_goes(
  tmp_path, changes, says
):
  path = str(tmp_path / 'a.keras')
  _save(path, visual_word_net.VisualWordNet(3, base_filters=1, depth=2))
  _change(path, lambda one: one | {'config': one['config'] | changes})
  with pytest.raises(errors.UserError, match=says):
    keras_file.load_network(path)


@pytest.mark.parametrize('cut', [1, 30, 2000])
def test_a_cut_file(tmp_path, cut):
  path = tmp_path / 'a.keras'
  _save(str(path))
  path.write_bytes(path.read_bytes()[:-cut])
  with pytest.raises(errors.UserError, match=r'a\.keras cannot be loaded'):
    keras_file.load_network(str(path))


@pytest.mark.parametrize(
  'build', [None, False, {}, {'input_shape': [1]}, {'shapes': []}]
)
def test_a_network_whose_weights_cannot_be_placed(tmp_path, build):
  """Keras gives it without weights, and without an error."""
  path = str(tmp_path / 'a.keras')
  _save(path)
  _change(path, lambda config: config | {'build_config': build})
  with pytest.raises(errors.UserError, match='has no build_config') as caught:
    keras_file.load_network(path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('pack', [{}, {'compression': 'gzip'}])
def test_weights_are_no_larger_than_the_file(tmp_path, monkeypatch, pack):
  """Arrays that are not stored, or packed, would be made in full."""
  path = str(tmp_path / 'a.keras')
  _save(path)
  with zipfile.ZipFile(path) as archive:
    members = {one: archive.read(one) for one in archive.namelist()}
  content = io.BytesIO(members['model.weights.h5'])
  with h5py.File(content, 'r+') as file:
    names = []
    file.visit(names.append)
    name = next(one for one in names if one.endswith('/vars/0'))
    shape = (2**28,) if not pack else file[name].shape
    del file[name]
    file.create_dataset(name, shape, np.float32, **pack)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      changed = name == 'model.weights.h5'
      archive.writestr(name, content.getvalue() if changed else data)
  monkeypatch.setattr(keras.saving, 'load_model', None)
  with pytest.raises(errors.UserError, match='safe to read'):
    keras_file.load_network(path)
