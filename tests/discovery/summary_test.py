"""The summary of a scan against its parts."""

import numpy as np
import pytest

from transvw_tf2 import schema
from transvw_tf2.discovery import descriptors
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import summary
from transvw_tf2.scans import geometry
from transvw_tf2.scans import reader


def _scan(size=(100, 90, 48)):
  hu = np.full(size, -900, np.int16)
  hu[:30] = 40
  return reader.Scan(hu, geometry.Geometry(size, (0.5, 0.75, 2.0)))


def _settings(**changes):
  return settings_lib.Settings(**{'xy_border': 4, 'z_border': 2} | changes)


def test_a_training_scan():
  scan = _scan()
  found = summary.summarise_scan('1.2', schema.TRAIN, scan, _settings())
  assert found.scan_id == '1.2'
  assert found.split == schema.TRAIN
  assert found.size == (100, 90, 48)
  assert found.spacing == (0.5, 0.75, 2.0)
  assert not found.border_reduced
  np.testing.assert_array_equal(
    found.thumbnail, descriptors.make_thumbnail(scan.hu)
  )
  assert found.candidates.dtype == np.int32
  assert 50 < len(found.candidates) < 200
  assert np.all(found.candidates >= (4, 4, 2))
  assert np.all(found.candidates <= (100 - 69, 90 - 69, 48 - 38))
  # At most 15 % of the cube is the tissue in front.
  assert np.all(found.candidates[:, 0] >= 30 - 0.15 * 64)
  assert found.candidates[:, 0].min() < 30


def test_a_validation_scan_is_never_a_reference():
  found = summary.summarise_scan('1.2', schema.VALIDATION, _scan(), _settings())
  assert found.candidates.shape == (0, 3)
  assert found.thumbnail.shape == (32, 32, 16)


def test_the_same_scan_and_seed_give_the_same_summary():
  def candidates(scan_id='1.2', **changes):
    one = summary.summarise_scan(
      scan_id, schema.TRAIN, _scan(), _settings(**changes)
    )
    return one.candidates.tolist()

  assert candidates() == candidates()
  assert candidates() != candidates(scan_id='1.3')
  assert candidates() != candidates(seed=2)
  assert candidates(tries=7) == candidates()[: len(candidates(tries=7))]


@pytest.mark.parametrize(
  ('size', 'some'), [((100, 90, 48), True), ((64, 64, 32), False)]
)
def test_borders_are_reduced_where_they_do_not_fit(size, some):
  found = summary.summarise_scan(
    '1.2', schema.TRAIN, _scan(size), _settings(xy_border=100, z_border=30)
  )
  assert found.border_reduced
  assert (len(found.candidates) > 0) is some


def test_borders_are_of_training_scans_alone():
  found = summary.summarise_scan(
    '1.2', schema.VALIDATION, _scan((64, 64, 32)), _settings(xy_border=100)
  )
  assert not found.border_reduced
