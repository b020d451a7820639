"""Masks: their geometry, their values and places in them."""

import dataclasses
import os

import numpy as np
import pytest
import SimpleITK as sitk

from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import masks
from transvw_tf2.scans import reader

_GEOMETRY = geometry_lib.Geometry((8, 7, 6), (0.7, 0.7, 2.0), (-3.0, 4.0, 5.0))


def _make_mask():
  mask = np.zeros(_GEOMETRY.size, np.uint8)
  mask[1:3, 2:5, 3] = 3
  mask[4, 2:5, 3] = 4
  mask[6, 6, 0] = 5
  return mask


def _write(path, mask=None, **geometry):
  mask = _make_mask() if mask is None else mask
  reader.write_scan(
    os.fspath(path), mask, dataclasses.replace(_GEOMETRY, **geometry)
  )
  return os.fspath(path)


def test_values_that_count(tmp_path):
  path = _write(tmp_path / 'a.nii.gz')
  mask = _make_mask()
  np.testing.assert_array_equal(masks.read_mask(path, _GEOMETRY), mask > 0)
  np.testing.assert_array_equal(
    masks.read_mask(path, _GEOMETRY, masks.LUNGS), (mask == 3) | (mask == 4)
  )


def test_a_mask_stored_backwards_lies_where_its_scan_does(tmp_path):
  path = _write(tmp_path / 'a.mhd')
  # SimpleITK flips the voxels and the header: the same places in the world.
  flipped = sitk.Flip(sitk.ReadImage(path), (True, False, True))
  other = os.fspath(tmp_path / 'flipped.mhd')
  sitk.WriteImage(flipped, other)
  assert flipped.GetDirection()[0] == -1
  np.testing.assert_array_equal(
    masks.read_mask(other, _GEOMETRY), _make_mask() > 0
  )


@pytest.mark.parametrize(
  ('name', 'changed'),
  [
    ('spacing', {'spacing': (0.7, 0.72, 2.0)}),
    ('origin', {'origin': (-3.0, 4.2, 5.0)}),
    (
      'direction',
      {'direction': (0.995, -0.0998, 0, 0.0998, 0.995, 0, 0, 0, 1)},
    ),
  ],
)
def test_another_geometry_is_named(tmp_path, name, changed):
  path = _write(tmp_path / 'a.mhd', **changed)
  with pytest.raises(reader.ScanError, match=f'a.mhd has {name} ') as caught:
    masks.read_mask(path, _GEOMETRY)
  assert caught.value.reason == 'mask_geometry'


def test_another_size_is_named(tmp_path):
  path = _write(tmp_path / 'a.mhd', _make_mask()[:-1], size=(7, 7, 6))
  with pytest.raises(reader.ScanError, match='has size 7 7 6, its scan 8 7 6'):
    masks.read_mask(path, _GEOMETRY)


def test_rounded_headers_are_the_same_geometry(tmp_path):
  path = _write(
    tmp_path / 'a.mhd', spacing=(0.70001, 0.7, 2.0), origin=(-3.0, 4.01, 5.0)
  )
  assert masks.read_mask(path, _GEOMETRY).any()


@pytest.mark.parametrize(
  ('value', 'reason'), [(-1000, 'mask_values'), (300, 'mask_values')]
)
def test_a_scan_is_no_mask(tmp_path, value, reason):
  mask = _make_mask().astype(np.int16)
  mask[0, 0, 0] = value
  with pytest.raises(reader.ScanError, match='a mask has 0 to 255') as caught:
    masks.read_mask(_write(tmp_path / 'a.mhd', mask), _GEOMETRY)
  assert caught.value.reason == reason


def test_a_mask_that_is_not_there_or_broken(tmp_path):
  with pytest.raises(reader.ScanError) as caught:
    masks.read_mask(os.fspath(tmp_path / 'none.mhd'), _GEOMETRY)
  assert caught.value.reason == 'missing_mask'
  path = _write(tmp_path / 'a.mhd')
  os.remove(tmp_path / 'a.zraw')
  with pytest.raises(reader.ScanError) as caught:
    masks.read_mask(path, _GEOMETRY)
  assert caught.value.reason == 'mask_missing_raw'


def test_a_mask_is_found_whatever_its_format(tmp_path):
  path = _write(tmp_path / '1.2.3.nii.gz')
  assert masks.find_mask(os.fspath(tmp_path), '1.2.3') == path
  assert masks.find_mask(os.fspath(tmp_path), '1.2') is None


def test_every_voxel_of_a_mask_is_as_likely():
  mask = _make_mask() > 0
  voxels = masks.draw_voxels(mask, 5000, np.random.default_rng(1), 'it')
  found, counts = np.unique(voxels, axis=0, return_counts=True)
  np.testing.assert_array_equal(found, np.argwhere(mask))
  expected = 5000 / mask.sum()
  # Five sd of a binomial count.
  assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_an_empty_mask_has_no_place():
  with pytest.raises(reader.ScanError, match='it marks no voxel'):
    masks.draw_voxels(np.zeros((3, 3, 3), bool), 1, None, 'it')
