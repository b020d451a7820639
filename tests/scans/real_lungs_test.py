"""Lungs and vessels that are found in a scan, against those that are known."""

import numpy as np
import pytest
from scipy import ndimage

from tests import real_ct
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import masks
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.scans import real_lungs


def test_it_finds_the_lungs_of_a_known_patient():
  patient = phantom.make_patient(3, 0, (128, 128, 96))
  found = real_lungs.find(patient.hu, patient.geometry)
  assert found.mask.dtype == np.uint8
  assert found.geometry == patient.geometry
  for label in masks.LUNGS:
    one, other = found.mask == label, patient.lung_mask == label
    dice = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert dice > 0.93
  # The box holds every voxel of the mask, and no more.
  voxels = np.argwhere(found.mask)
  ends = patient.geometry.voxel_to_world([voxels.min(0), voxels.max(0)])
  middle, half = found.box
  np.testing.assert_allclose([middle - half, middle + half], ends)


def test_vessels_are_bright_and_deep_in_the_lungs():
  patient = phantom.make_patient(3, 1, (128, 128, 96))
  found = real_lungs.find(patient.hu, patient.geometry)
  voxels = np.rint(patient.geometry.world_to_voxel(found.vessels)).astype(int)
  assert len(voxels) > 200
  assert patient.hu[tuple(voxels.T)].min() > -300
  depth = ndimage.distance_transform_edt(
    found.mask > 0, sampling=patient.geometry.spacing
  )
  assert depth[tuple(voxels.T)].min() > 6.0


def test_a_tumour_is_no_vessel():
  patient = phantom.make_patient(3, 2, (128, 128, 96))
  depth = ndimage.distance_transform_edt(
    patient.lung_mask == masks.LUNGS[1], sampling=patient.geometry.spacing
  )
  middle = np.unravel_index(depth.argmax(), depth.shape)
  points = patient.geometry.voxel_to_world(
    np.stack(np.indices(patient.hu.shape), axis=-1)
  )
  away = np.linalg.norm(
    points - patient.geometry.voxel_to_world(middle), axis=-1
  )
  hu = np.where(away < 14.0, 40, patient.hu).astype(np.int16)
  found = real_lungs.find(hu, patient.geometry)
  distance = np.linalg.norm(
    found.vessels - patient.geometry.voxel_to_world(middle), axis=-1
  )
  assert distance.min() > 14.0


def test_a_scan_that_runs_to_the_right_has_the_same_lungs():
  patient = phantom.make_patient(3, 0, (96, 96, 64))
  given = patient.geometry
  last = given.voxel_to_world([given.size[0] - 1, 0, 0])
  flipped = geometry_lib.Geometry(
    given.size,
    given.spacing,
    tuple(last.tolist()),
    (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
  )
  wanted = real_lungs.find(patient.hu, given)
  found = real_lungs.find(patient.hu[::-1], flipped)
  # Blocks begin at the other end.
  assert (found.mask[::-1] == wanted.mask).mean() > 0.999
  np.testing.assert_allclose(found.box, wanted.box, atol=2 * given.spacing[0])


@pytest.mark.parametrize('hu', [-1000, 40])
def test_there_are_none_in_air_or_water(hu):
  geometry = geometry_lib.Geometry((64, 64, 40), (5.0, 5.0, 5.0))
  assert real_lungs.find(np.full((64, 64, 40), hu, np.int16), geometry) is None


def test_lungs_of_a_real_scan_have_a_plausible_size():
  scan = reader.read_scan(real_ct.path())
  found = real_lungs.find(scan.hu, scan.geometry)
  litres = [
    (found.mask == label).sum() * np.prod(scan.geometry.spacing) / 1e6
    for label in masks.LUNGS
  ]
  assert 0.8 < litres[0] < litres[1] < 3.0
  # x runs to the left of the patient.
  left, right = (
    np.argwhere(found.mask == label)[:, 0].mean() for label in masks.LUNGS
  )
  assert left > right
  assert len(found.vessels) > 1000
