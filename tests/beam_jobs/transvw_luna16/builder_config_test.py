"""What a config of the data set may say."""

import copy
import dataclasses
import pickle

import pytest

from beam_jobs import transvw_luna16
from transvw_tf2 import errors
from transvw_tf2.discovery import settings as settings_lib

_Config = transvw_luna16.Builder.builder_config_cls


def test_one_named_config_with_the_defaults_of_discovery():
  (default,) = transvw_luna16.Builder.BUILDER_CONFIGS
  assert default.name == 'default'
  assert default.settings() == settings_lib.Settings()
  assert (default.vocabulary, default.strict, default.writer) == (
    None,
    False,
    'disk',
  )


def test_settings_carry_all_fields():
  values = {
    'words': 2,
    'instances': 3,
    'validation_instances': 4,
    'xy_border': 5,
    'z_border': 6,
    'min_distance': 7,  # a float may come as an integer
    'tries': 8,
    'max_soft_tissue': 0.5,
    'seed': 9,
    'frame': 'lung',
  }
  assert set(values) == {
    field.name for field in dataclasses.fields(settings_lib.Settings)
  }
  config = _Config(name='mine', **values)
  assert config.settings() == settings_lib.Settings(**values)
  for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
    assert copied == config


@pytest.mark.parametrize(
  ('fields', 'line'),
  [
    ({'wrods': 3}, 'unknown config field "wrods"; known are name, words, '),
    ({'words': '3'}, "words must be an integer, at least 1, got '3'"),
    ({'words': True}, 'words must be an integer, at least 1, got True'),
    ({'words': 2.5}, 'words must be an integer, at least 1, got 2.5'),
    ({'words': 0}, 'words must be an integer, at least 1, got 0'),
    ({'min_distance': '5'}, 'min_distance must be a number'),
    ({'frame': 'body'}, "frame must be one of voxel, lung, got 'body'"),
    ({'strict': 1}, 'config field strict must be true or false, got 1'),
    ({'vocabulary': 5}, 'config field vocabulary must be a path, got 5'),
    ({'extend': 5}, 'config field extend must be a path, got 5'),
    (
      {'extend': 'a', 'vocabulary': 'b'},
      'config fields vocabulary and extend exclude each other',
    ),
    (
      {'descriptors': 'a', 'vocabulary': 'b'},
      'config field vocabulary takes patients as they were found: leave out',
    ),
    ({'writer': 'tape'}, "writer must be one of disk, beam, got 'tape'"),
  ],
)
def test_wrong_fields_are_named(fields, line):
  with pytest.raises(errors.UserError, match=line):
    _Config(name='mine', **fields)


def test_a_config_needs_a_name():
  with pytest.raises(errors.UserError, match='a config needs a name'):
    _Config(words=3)
