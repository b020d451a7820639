"""Settings: the paper's numbers, and values that cannot be."""

import dataclasses

import pytest

from transvw_tf2 import errors
from transvw_tf2.discovery import settings
from transvw_tf2.discovery import vocabulary


def test_defaults_are_those_of_the_study():
  assert dataclasses.asdict(settings.Settings()) == {
    'words': 44,
    'instances': 200,
    'validation_instances': 30,
    'xy_border': 100,
    'z_border': 30,
    'min_distance': 5.0,
    'tries': 200,
    'max_soft_tissue': 0.15,
    'seed': 1,
    'frame': 'voxel',
  }
  assert vocabulary.Settings is settings.Settings


@pytest.mark.parametrize(
  ('name', 'value', 'wanted'),
  [
    ('words', 0, 'an integer, at least 1'),
    ('words', 2.5, 'an integer, at least 1'),
    ('words', '10', 'an integer, at least 1'),
    ('words', True, 'an integer, at least 1'),
    ('instances', 0, 'an integer, at least 1'),
    ('tries', 0, 'an integer, at least 1'),
    ('validation_instances', -1, 'an integer, at least 0'),
    ('xy_border', -1, 'an integer, at least 0'),
    ('z_border', 30.0, 'an integer, at least 0'),
    ('seed', -1, 'an integer, at least 0'),
    ('seed', None, 'an integer, at least 0'),
    ('min_distance', -0.1, 'a number, at least 0'),
    ('min_distance', float('nan'), 'a number, at least 0'),
    ('min_distance', float('inf'), 'a number, at least 0'),
    ('max_soft_tissue', 'much', 'a number, at least 0'),
  ],
)
def test_values_that_cannot_be(name, value, wanted):
  with pytest.raises(errors.UserError) as caught:
    settings.Settings(**{name: value})
  assert str(caught.value) == f'{name} must be {wanted}, got {value!r}'


def test_a_frame_that_is_not_known():
  settings.Settings(frame='lung')
  for frame in ('body', '', None, 1):
    with pytest.raises(
      errors.UserError,
      match=f'frame must be one of voxel, lung, got {frame!r}',
    ):
      settings.Settings(frame=frame)


def test_least_values():
  settings.Settings(
    words=1,
    instances=1,
    validation_instances=0,
    xy_border=0,
    z_border=0,
    min_distance=0,
    tries=1,
    max_soft_tissue=0,
    seed=0,
  )


def test_settings_must_be_those_of_a_given_vocabulary():
  made_with = settings.Settings(words=10, seed=3, frame='lung')
  for given in ({}, {'words': 10}, {'seed': 3, 'frame': 'lung'}):
    settings.check_same(settings.Settings(**given), made_with, 'V')
  given = settings.Settings(words=12)
  settings.check_same(given, made_with, 'V', leave_out=('words',))
  with pytest.raises(
    errors.UserError, match='words is 12, but V was made with 10; leave words'
  ):
    settings.check_same(given, made_with, 'V')
  with pytest.raises(errors.UserError, match='tries is 3, but V was made with'):
    settings.check_same(
      settings.Settings(tries=3), made_with, 'V', leave_out=('words',)
    )
