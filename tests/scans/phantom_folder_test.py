"""Folders of synthetic patients: LUNA16's layout, candidates and the truth."""

import dataclasses
import itertools
import os

import numpy as np
import pytest
from scipy import ndimage

from tests import real_ct
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader

_SMALL = (96, 96, 64)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = os.fspath(tmp_path_factory.mktemp('phantom') / 'scans')
  phantom.write_luna16(path, 12, _SMALL, seed=5)
  return path


def test_a_folder_has_the_layout_of_luna16(folder):
  scans = luna16.find_scans(folder)
  assert len(scans) == 12
  subsets = [scan.subset for scan in scans]
  assert [subsets.count(one) for one in range(10)] == [2, 2] + [1] * 8
  splits = [scan.split for scan in scans]
  assert splits.count(schema.TRAIN) == 7
  assert splits.count(schema.VALIDATION) == 2
  for scan in scans:
    assert os.path.exists(scan.path.replace('.mhd', '.raw'))
    read = reader.read_scan(scan.path)
    assert read.geometry.size == _SMALL
    mask_path = luna16.lung_mask_path(folder, scan.scan_id)
    assert os.path.exists(mask_path.replace('.mhd', '.zraw'))
    mask = reader.read_scan(mask_path, check=False)
    assert mask.geometry == read.geometry
    assert set(np.unique(mask.hu)) == {0, 3, 4}
    # LPS: the left lung has the larger x.
    left, right = (
      mask.geometry.voxel_to_world(np.argwhere(mask.hu == label)).mean(0)
      for label in (3, 4)
    )
    assert left[0] > right[0] + 100.0


def test_candidates_are_true_in_nodules_and_false_outside(folder):
  annotations = luna16.read_annotations(folder)
  candidates = luna16.read_candidates(folder)
  scans = {
    scan.scan_id: reader.read_scan(scan.path)
    for scan in luna16.find_scans(folder)
  }
  assert {one.scan_id for one in annotations} == set(scans)
  assert {one.label for one in candidates} == {0, 1}
  assert sum(one.label for one in candidates) == len(annotations)
  for one in candidates:
    scan = scans[one.scan_id]
    distances = [
      np.linalg.norm(np.subtract(one.centre, nodule.centre))
      - nodule.diameter / 2
      for nodule in annotations
      if nodule.scan_id == one.scan_id
    ]
    assert (min(distances) < 0) == (one.label == 1)
    voxel = np.rint(scan.geometry.world_to_voxel(one.centre)).astype(int)
    assert (voxel >= 0).all() and (voxel < _SMALL).all()
    if one.label == 1:
      # A nodule is brighter than lung, even one of little more than a voxel.
      assert scan.hu[tuple(voxel)] > -600
    mask = reader.read_scan(
      luna16.lung_mask_path(folder, one.scan_id), check=False
    )
    assert mask.hu[tuple(voxel)] > 0


def test_a_patient_is_the_same_in_a_larger_collection(folder, tmp_path):
  fewer = os.fspath(tmp_path / 'fewer')
  phantom.write_luna16(fewer, 2, _SMALL, seed=5)
  paths = [
    os.path.relpath(os.path.join(at, name), fewer)
    for at, _, names in os.walk(fewer)
    for name in names
    if name.endswith(('.mhd', '.raw', '.zraw', '.tfm'))
  ]
  assert len(paths) == 2 * 5
  for path in paths:
    with (
      open(os.path.join(fewer, path), 'rb') as one,
      open(os.path.join(folder, path), 'rb') as other,
    ):
      assert one.read() == other.read(), path


def test_the_truth_is_filed_with_the_scans(folder):
  truths = phantom.load_truth(folder)
  assert set(truths) == {one.scan_id for one in luna16.find_scans(folder)}
  voxels = np.random.default_rng(0).uniform(0, 60, (50, 3))
  for index in range(3):
    one = phantom.make_patient(5, index, _SMALL)
    np.testing.assert_allclose(
      truths[one.scan_id].template_coordinates(voxels),
      one.template_coordinates(voxels),
      atol=1e-6,
    )


def test_a_folder_without_truth_is_named(folder, tmp_path):
  scan = luna16.find_scans(folder)[0]
  (tmp_path / 'subset0').mkdir()
  for suffix in ('.mhd', '.raw'):
    path = scan.path.replace('.mhd', suffix)
    os.symlink(path, tmp_path / 'subset0' / os.path.basename(path))
  with pytest.raises(errors.UserError, match=r'no .*\.tfm; the truth is known'):
    phantom.load_truth(os.fspath(tmp_path))


def test_a_real_scan_makes_a_folder_of_patients(tmp_path):
  path = real_ct.path()
  folder = os.fspath(tmp_path / 'bent')
  phantom.write_luna16(folder, 3, (96, 96, 48), seed=4, source=path)
  assert luna16.read_annotations(folder) == []
  assert luna16.read_candidates(folder) == []
  source = reader.read_scan(path)
  truths = phantom.load_truth(folder)
  rng = np.random.default_rng(0)
  for scan in luna16.find_scans(folder):
    assert luna16.lung_mask_path(folder, scan.scan_id) is None
    bent = reader.read_scan(scan.path)
    voxels = rng.integers(20, (76, 76, 28), (4000, 3))
    places = truths[scan.scan_id].template_coordinates(voxels)
    index = source.geometry.world_to_voxel(places)
    real = ndimage.map_coordinates(
      source.hu, index.T, order=1, output=np.float64, cval=-1024
    )
    noise = bent.hu[tuple(voxels.T)] - np.maximum(real, -1024)
    assert 1.0 < noise.std() < 12.0
  first, second = itertools.islice(truths.values(), 2)
  middle = np.array([[48.0, 48.0, 24.0]])
  apart = first.template_coordinates(middle) - second.template_coordinates(
    middle
  )
  assert np.linalg.norm(apart) > 1.0


def test_nodules_are_put_into_the_lungs_of_a_real_scan(tmp_path):
  path = real_ct.path()
  folder = os.fspath(tmp_path / 'bent')
  variation = dataclasses.replace(
    phantom.variation_of(reader.read_scan(path)), nodules=(2, 3)
  )
  phantom.write_luna16(
    folder, 2, (96, 96, 48), seed=4, variation=variation, source=path
  )
  annotations = luna16.read_annotations(folder)
  assert {one.scan_id for one in annotations} == {
    one.scan_id for one in luna16.find_scans(folder)
  }
  false = [one for one in luna16.read_candidates(folder) if not one.label]
  assert len(false) > 6
  for scan in luna16.find_scans(folder):
    mask = reader.read_scan(
      luna16.lung_mask_path(folder, scan.scan_id), check=False
    )
    assert set(np.unique(mask.hu)) == {0, 3, 4}
    for one in (*annotations, *false):
      if one.scan_id == scan.scan_id:
        voxel = np.rint(mask.geometry.world_to_voxel(one.centre)).astype(int)
        assert mask.hu[tuple(voxel)] > 0


def test_a_scan_without_lungs_gets_no_nodules(tmp_path):
  geometry = geometry_lib.Geometry((64, 64, 40), (5.0, 5.0, 5.0))
  hu = np.random.default_rng(0).integers(0, 80, geometry.size)
  hu[:8] = -1000
  path = os.fspath(tmp_path / 'head.nrrd')
  reader.write_scan(path, hu.astype(np.int16), geometry)
  variation = phantom.Variation(nodules=(1, 2))
  with pytest.raises(errors.UserError, match=r'head\.nrrd: no lungs with ves'):
    phantom.write_luna16(
      os.fspath(tmp_path / 'bent'), 1, (64, 64, 40), 1, variation, path
    )
