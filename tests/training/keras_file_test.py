"""Of .keras files only our networks are made, and none larger than its file."""

import json
import os
import zipfile

import keras
import numpy as np
import pytest

from transvw_tf2 import errors
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


@pytest.mark.parametrize('words', [None, 3])
def test_our_networks_come_back(tmp_path, words):
  path = str(tmp_path / 'a.keras')
  sizes = {'base_filters': 1, 'depth': 2}
  model = _save(path, words and visual_word_net.VisualWordNet(words, **sizes))
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


@pytest.mark.parametrize('build', [None, False, {}])
def test_a_network_whose_weights_cannot_be_placed(tmp_path, build):
  """Keras gives it without weights, and without an error."""
  path = str(tmp_path / 'a.keras')
  _save(path)
  _change(path, lambda config: config | {'build_config': build})
  with pytest.raises(errors.UserError, match='has no build_config') as caught:
    keras_file.load_network(path)
  assert '\n' not in str(caught.value)
