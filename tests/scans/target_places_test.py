"""Where cubes lie in a scan, against brute force on tiny scans."""

import os

import numpy as np
import pytest

from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import reader
from transvw_tf2.scans import target_cubes
from transvw_tf2.scans import target_places

# y and z run against the world.
_GEOMETRY = geometry_lib.Geometry(
  (48, 40, 30),
  spacing=(1.0, 0.5, 2.0),
  origin=(10.0, -20.0, 30.0),
  direction=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0),
)
_CUBE = target_cubes.CubeSize((16, 16, 8))
_SCAN = reader.Scan(
  np.random.default_rng(0).integers(-1000, 400, _GEOMETRY.size, np.int16),
  _GEOMETRY,
)


def _world(x, y, z):
  """Returns world mm of a voxel of the scan above."""
  return (10.0 + x, -20.0 - 0.5 * y, 30.0 - 2.0 * z)


def _write_mask(folder, mask):
  path = os.fspath(folder / 'mask.nii.gz')
  reader.write_scan(path, mask.astype(np.uint8), _GEOMETRY)
  return path


@pytest.fixture(name='mask')
def _mask(tmp_path):
  """A block; the file is read back in LPS, where y and z are flipped."""
  mask = np.zeros(_GEOMETRY.size, bool)
  mask[20:24, 10:16, 8:12] = True
  path = _write_mask(tmp_path, mask)
  hu = reader.read_scan(path, check=False)
  scan = reader.Scan(_SCAN.hu[:, ::-1, ::-1].copy(), hu.geometry)
  return path, mask[:, ::-1, ::-1], scan


def test_points_keep_their_labels_and_those_outside_are_named():
  points = (
    (_world(20, 10, 15), 1),
    (_world(47.4, 39.4, 29.4), 0),  # the outer edge of the last voxel
    (_world(47.6, 10, 15), 1),
  )
  found = target_places.AroundPoints(points, _CUBE).find(_SCAN)
  assert [(one.number, one.label) for one in found.cubes] == [(0, 1), (1, 0)]
  # The voxel is the first after the middle.
  assert found.cubes[0].box == target_cubes.Box((12, 2, 11), (16, 16, 8))
  assert found.cut_mask is None
  ((reason, detail),) = found.rejected
  assert reason == 'outside_scan'
  assert detail == 'place 57.60 -25.00 0.00 mm is voxel 47.6 10.0 15.0'


def _around(nodules, **settings):
  settings = {'scan_id': 'a', 'cube': _CUBE, 'seed': 3} | settings
  return target_places.AroundNodules(nodules=tuple(nodules), **settings)


def test_all_nodules_of_a_scan_are_in_the_mask_of_each_cube():
  nodules = [(_world(20, 10, 15), 4.0), (_world(25, 12, 16), 6.0)]
  found = _around(nodules).find(_SCAN)
  grid = np.stack(
    np.meshgrid(*map(np.arange, _GEOMETRY.size), indexing='ij'), axis=-1
  )
  expected = np.zeros(_GEOMETRY.size, np.uint8)
  for (x, y, z), radius in (((20, 10, 15), 2.0), ((25, 12, 16), 3.0)):
    mm = (grid - (x, y, z)) * (1.0, 0.5, 2.0)
    expected |= ((mm**2).sum(-1) <= radius**2).astype(np.uint8)
  for one in found.cubes:
    low, high = np.array(one.box.origin), np.add(one.box.origin, (16, 16, 8))
    cut = expected[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    np.testing.assert_array_equal(found.cut_mask(one.box), cut)
    assert cut.any()
  assert len(found.cubes) == 2


def test_jitter_moves_the_middle_by_so_many_mm_at_most():
  middle = (24, 20, 15)
  nodules = [(_world(*middle), 40.0)] * 40
  cubes = _around(nodules, jitter_mm=4.0).find(_SCAN).cubes
  corners = np.array([one.box.origin for one in cubes])
  off = (corners + (7.5, 7.5, 3.5) - middle) * _GEOMETRY.spacing
  # Half a voxel more, for a box begins at a voxel.
  assert np.all(np.abs(off) <= 4.0 + np.array(_GEOMETRY.spacing) / 2)
  assert np.all(np.abs(off).max(axis=0) >= 3.0)
  same = _around(nodules, jitter_mm=4.0).find(_SCAN).cubes
  assert same == cubes
  other = _around(nodules, jitter_mm=4.0, scan_id='b').find(_SCAN).cubes
  assert other != cubes


def test_cubes_without_a_nodule_lie_in_the_scan():
  nodules = [(_world(20, 10, 15), 4.0), (_world(25, 12, 16), 6.0)]
  found = _around(nodules, without_nodule=2.0).find(_SCAN)
  assert [one.number for one in found.cubes] == list(range(6))
  for one in found.cubes[2:]:
    assert not found.cut_mask(one.box).any()
    assert np.all(np.array(one.box.origin) >= 0)
    assert np.all(np.add(one.box.origin, _CUBE.shape) <= _GEOMETRY.size)


def test_no_free_place_is_said():
  found = _around([(_world(24, 20, 15), 500.0)], without_nodule=1.0).find(_SCAN)
  assert len(found.cubes) == 1
  assert [reason for reason, _ in found.rejected] == ['no_free_place']


def test_a_mask_of_the_user_and_a_nodule_that_it_lacks(mask):
  path, expected, scan = mask
  nodules = [(_world(22, 13, 10), 5.0), (_world(40, 34, 25), 5.0)]
  found = _around(nodules, mask_path=path).find(scan)
  (one,) = found.cubes
  low, high = np.array(one.box.origin), np.add(one.box.origin, (16, 16, 8))
  np.testing.assert_array_equal(
    found.cut_mask(one.box),
    expected[low[0] : high[0], low[1] : high[1], low[2] : high[2]],
  )
  assert found.cut_mask(one.box).sum() == 4 * 6 * 4
  assert [reason for reason, _ in found.rejected] == ['not_in_mask']


def test_cubes_in_a_mask_and_without(mask):
  path, expected, scan = mask
  wanted = target_places.InMask('a', path, _CUBE, cubes=9, without=4, seed=1)
  found = wanted.find(scan)
  assert [one.number for one in found.cubes] == list(range(13))
  for one in found.cubes[:9]:
    x, y, z = np.array(one.box.origin) + (8, 8, 4)
    # One of the middle voxels is in the mask.
    assert expected[x - 1 : x + 1, y - 1 : y + 1, z - 1 : z + 1].any()
  assert not any(found.cut_mask(one.box).any() for one in found.cubes[9:])
  assert wanted.find(scan).cubes == found.cubes


def test_a_mask_that_resampling_loses_is_no_background(tmp_path):
  """Of 24 voxels 8 are left: the mark, one voxel, lies between samples."""
  mask = np.zeros(_GEOMETRY.size, bool)
  mask[5, 6, 7] = True
  path = _write_mask(tmp_path, mask)
  geometry = reader.read_scan(path, check=False).geometry
  scan = reader.Scan(_SCAN.hu[:, ::-1, ::-1].copy(), geometry)
  coarse = target_cubes.CubeSize((8, 8, 8), (24.0, 12.0, 48.0))
  (voxel,) = np.argwhere(mask[:, ::-1, ::-1])

  def holds(one):
    low, high = np.array(one.box.origin), np.add(one.box.origin, one.box.size)
    return np.all(voxel >= low) and np.all(voxel < high)

  wanted = target_places.InMask('a', path, coarse, cubes=3, without=3, seed=1)
  found = wanted.find(scan)
  assert [reason for reason, _ in found.rejected] == ['mask_too_fine'] * 3
  assert len(found.cubes) == 3
  assert not any(map(holds, found.cubes))
  nodules = [(geometry.voxel_to_world(voxel), 1.0)]
  found = _around(nodules, cube=coarse, mask_path=path).find(scan)
  assert [reason for reason, _ in found.rejected] == ['mask_too_fine']
  found = target_places.WholeScan(coarse, mask_path=path).find(scan)
  assert [reason for reason, _ in found.rejected] == ['mask_too_fine']


def test_a_lung_mask_that_cannot_be_used_costs_no_nodule(tmp_path):
  path = _write_mask(tmp_path, np.zeros(_GEOMETRY.size, bool))
  geometry = reader.read_scan(path, check=False).geometry
  scan = reader.Scan(_SCAN.hu[:, ::-1, ::-1].copy(), geometry)
  found = _around(
    [(_world(20, 10, 15), 4.0)], without_nodule=1.0, lungs_path=path
  ).find(scan)
  assert [one.number for one in found.cubes] == [0]
  ((reason, detail),) = found.rejected
  assert reason == 'mask_empty'
  assert 'the lung mask marks no voxel' in detail


def test_a_whole_scan_is_one_cube(mask):
  path, expected, scan = mask
  found = target_places.WholeScan(_CUBE, mask_path=path).find(scan)
  (one,) = found.cubes
  assert one.box == target_cubes.Box((0, 0, 0), _GEOMETRY.size)
  cut = found.cut_mask(one.box)
  assert cut.shape == (16, 16, 8)
  # 48 / 16, 40 / 16 and 30 / 8 voxels a sample.
  assert cut.mean() == pytest.approx(expected.mean(), rel=0.7)
  assert cut[7, 10, 5] == expected[22, 26, 20] == 1
  (labelled,) = target_places.WholeScan(_CUBE, label=2).find(scan).cubes
  assert labelled.label == 2
