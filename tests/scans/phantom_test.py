"""Synthetic patients: what they show, and where it truly lies."""

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage
import SimpleITK as sitk

from transvw_tf2 import errors
from transvw_tf2.scans import bend as bend_lib
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.scans import real_lungs
from transvw_tf2.scans.anatomy import template as template_lib

_SIZE = (192, 192, 128)
_SMALL = (96, 96, 64)
_QUIET = phantom.Variation(noise=(0.0, 0.0), lung_density=(0.0, 0.0))
# Everything that may differ between the scans of LUNA16.
_STRONG = phantom.Variation(
  translation_sd=20.0,
  scale=(0.85, 1.2),
  field_of_view=(300.0, 420.0),
  slice_thickness=(0.6, 2.5),
  displacement_sd=5.0,
)


@pytest.fixture(scope='module')
def patient():
  return phantom.make_patient(3, 0, _SIZE)


@pytest.fixture(scope='module')
def quiet():
  return phantom.make_patient(3, 1, _SIZE, _QUIET)


def _value(patient, place):
  """Returns HU at the voxel nearest to a place of the template."""
  voxel = np.rint(patient.truth.scan_voxels(np.asarray(place))).astype(int)
  return patient.hu[tuple(voxel)]


def test_a_patient_is_a_scan_with_a_mask(patient):
  assert patient.hu.dtype == np.int16
  assert patient.hu.shape == _SIZE == patient.geometry.size
  assert patient.lung_mask.dtype == np.uint8
  assert patient.lung_mask.shape == _SIZE
  assert set(np.unique(patient.lung_mask)) == {0, 3, 4}
  assert patient.hu.min() >= -1024
  assert patient.geometry.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
  assert re.fullmatch(r'[0-9]+(\.[0-9]+)*', patient.scan_id)
  assert len(patient.scan_id) <= 64


@pytest.mark.parametrize('name', template_lib.LANDMARKS)
def test_tissues_have_their_hu(quiet, name):
  tissue, place = template_lib.LANDMARKS[name]
  low, high = template_lib.TISSUE_HU[tissue]
  assert low <= _value(quiet, place) <= high


def test_noise_has_its_sd_and_is_shared_by_neighbours():
  noisy = dataclasses.replace(_QUIET, noise=(15.0, 15.0))
  pair = [
    phantom.make_patient(3, 1, _SMALL, one).hu.astype(float)
    for one in (noisy, _QUIET)
  ]
  # Air is cut off at -1024 HU.
  noise = np.where(pair[1] > -900, pair[0] - pair[1], np.nan)
  assert np.nanstd(noise) == pytest.approx(15.0, rel=0.03)
  assert abs(np.nanmean(noise)) < 0.5
  for axis, wanted in ((0, 0.5), (1, 0.5), (2, 0.0)):
    ahead = np.moveaxis(noise, axis, 0)
    product = np.nanmean(ahead[1:] * ahead[:-1]) / 15.0**2
    assert product == pytest.approx(wanted, abs=0.05)


def _segment_lungs(hu, geometry):
  """Finds lungs as one does in a real scan: threshold, pieces, closing.

  Returns:
    Masks of the pieces of air of more than 0.5 L that do not lie around the
    body, vessels closed, the piece at the patient's left first.
  """
  pieces, _ = ndimage.label(hu < -400)
  sides = (pieces[[0, -1]], pieces[:, [0, -1]])
  outside = np.unique(np.concatenate([side.ravel() for side in sides]))
  litres = np.bincount(pieces.ravel()) * np.prod(geometry.spacing) / 1e6
  litres[outside] = 0.0
  ball = ndimage.generate_binary_structure(3, 1)
  lungs = []
  for label in np.flatnonzero(litres > 0.5):
    lung = np.pad(pieces == label, 5)
    lung = ndimage.binary_closing(lung, ball, iterations=4)
    lungs.append(ndimage.binary_fill_holes(lung)[5:-5, 5:-5, 5:-5])
  return sorted(lungs, key=lambda lung: -np.argwhere(lung)[:, 0].mean())


def test_a_threshold_finds_the_two_lungs_of_the_mask(patient):
  lungs = _segment_lungs(patient.hu, patient.geometry)
  assert len(lungs) == 2
  for lung, label in zip(lungs, (3, 4), strict=True):
    litres = lung.sum() * np.prod(patient.geometry.spacing) / 1e6
    assert 1.5 <= litres <= 3.5
    shipped = patient.lung_mask == label
    dice = 2 * (lung & shipped).sum() / (lung.sum() + shipped.sum())
    assert dice >= 0.95


def test_nodules_are_solid_in_the_lungs_and_where_they_say(patient):
  assert 1 <= len(patient.nodules) <= 4
  for nodule in patient.nodules:
    assert 5.0 < nodule.diameter < 29.0
    voxel = patient.geometry.world_to_voxel(nodule.centre)
    x, y, z = np.rint(voxel).astype(int)
    assert patient.lung_mask[x, y, z] in (3, 4)
    around = patient.hu[x - 1 : x + 2, y - 1 : y + 2, z]
    assert -150 < around.mean() < 150
    # Their place in the template, and back.
    place = patient.template_coordinates(voxel)
    again = patient.geometry.voxel_to_world(patient.truth.scan_voxels(place))
    assert np.linalg.norm(again - nodule.centre) <= 0.1


def test_nodules_have_their_volume_and_lie_in_no_other_patients():
  without = dataclasses.replace(_QUIET, nodules=(0, 0))
  small = (160, 160, 128)
  one = phantom.make_patient(3, 1, small, _QUIET)
  none = phantom.make_patient(3, 1, small, without)
  assert not none.nodules
  grown = (one.hu > -400) & (none.hu <= -400)
  volume = grown.sum() * np.prod(one.geometry.spacing)
  wanted = sum(4 / 3 * np.pi * np.prod(one.radii) for one in one.nodules)
  # Vessels in them were there before.
  assert volume == pytest.approx(wanted, rel=0.2)


def _count_beyond(patient, nodule, reach):
  """Returns the share of a sphere around a nodule that is not in the lungs."""
  rng = np.random.default_rng(5)
  sphere = rng.normal(size=(500, 3))
  sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
  points = nodule.centre + reach * sphere
  voxels = np.rint(patient.geometry.world_to_voxel(points)).astype(int)
  return (patient.lung_mask[tuple(voxels.T)] == 0).mean()


def test_attached_nodules_touch_the_pleura_or_a_vessel():
  variation = phantom.Variation(nodules=(5, 5), diameter=(4, 9), attached=1.0)
  vessels = template_lib.draw().vessels
  at_pleura = at_vessel = 0
  for index in range(3):
    one = phantom.make_patient(3, index, _SIZE, variation)
    places = one.truth.bend.invert(vessels)
    for nodule in one.nodules:
      beyond = _count_beyond(one, nodule, max(nodule.radii))
      distance = np.linalg.norm(places - nodule.centre, axis=-1).min()
      # The mask has voxels of 2 mm, so a nodule may seem to touch and not do.
      if beyond > 0.05:
        at_pleura += 1
        assert beyond < 0.5
      else:
        at_vessel += 1
        assert distance < max(nodule.radii) + 0.1
  assert at_pleura + at_vessel > 10
  assert min(at_pleura, at_vessel) > 2
  # Others have lung all around.
  alone = phantom.make_patient(
    3, 0, _SIZE, dataclasses.replace(variation, attached=0.0)
  )
  for nodule in alone.nodules:
    assert not _count_beyond(alone, nodule, max(nodule.radii) + 1.5)


def test_the_end_of_the_scan_is_no_pleura():
  variation = phantom.Variation(
    nodules=(5, 5), attached=1.0, length=(150.0, 170.0)
  )
  directions = np.random.default_rng(0).normal(size=(200, 3))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  nodules = 0
  for index in range(6):
    one = phantom.make_patient(5, index, _SMALL, variation)
    for nodule in one.nodules:
      surface = nodule.centre + directions * nodule.radii
      assert one.truth.in_scan(surface).all()
      nodules += 1
  assert nodules > 20


def test_the_table_lies_behind_the_body_and_is_not_bent(quiet):
  pieces, _ = ndimage.label(quiet.hu > -500)
  sizes = np.bincount(pieces.ravel())[1:]
  body = pieces == np.argmax(sizes) + 1
  spine = quiet.truth.scan_voxels(template_lib.LANDMARKS['vertebra'][1])
  assert body[tuple(np.rint(spine).astype(int))]
  hull = body.any(axis=2)
  table = (quiet.hu > -500) & ~body
  behind = np.array(
    [
      column.max() if len(column) else -1
      for column in (np.flatnonzero(row) for row in hull)
    ]
  )
  columns = np.arange(_SIZE[1])
  table &= columns[:, np.newaxis] > behind[:, np.newaxis, np.newaxis]
  assert table.sum() > 20_000
  # The same outline in every slice.
  assert (table == table[..., :1]).all()
  first = np.argmax(table[..., 0], axis=1)
  covered = table[..., 0].any(axis=1) & hull.any(axis=1)
  gap = (first - behind)[covered].min() * quiet.geometry.spacing[1]
  assert 3.0 < gap < 15.0
  # From the upper side of its shell to the lower, foam between.
  middle = np.flatnonzero(table[_SIZE[0] // 2, :, 0])
  thickness = (middle[-1] - middle[0] + 1) * quiet.geometry.spacing[1]
  assert thickness == pytest.approx(18.0, abs=4.0)
  assert len(middle) < middle[-1] - middle[0] + 1


def test_the_same_arguments_give_the_same_voxels():
  one, same, other, third = (
    phantom.make_patient(seed, index, _SMALL)
    for seed, index in ((7, 2), (7, 2), (8, 2), (7, 3))
  )
  np.testing.assert_array_equal(one.hu, same.hu)
  np.testing.assert_array_equal(one.lung_mask, same.lung_mask)
  assert one.nodules == same.nodules
  assert one.scan_id == same.scan_id
  for different in (other, third):
    assert one.scan_id != different.scan_id
    assert one.geometry.spacing != different.geometry.spacing
    assert (one.lung_mask != different.lung_mask).mean() > 0.01


def test_the_size_changes_the_voxels_and_not_the_anatomy(patient):
  small = phantom.make_patient(3, 0, _SMALL)
  assert small.scan_id != patient.scan_id
  np.testing.assert_allclose(
    [one.centre for one in small.nodules],
    [one.centre for one in patient.nodules],
    atol=1e-3,
  )
  world = small.geometry.voxel_to_world([[20.0, 30.0, 40.0]])
  np.testing.assert_allclose(
    small.truth.bend.apply(world), patient.truth.bend.apply(world), atol=1e-6
  )


def test_a_place_looks_alike_in_patients_and_unlike_other_places(
  patient, quiet
):
  rng = np.random.default_rng(0)
  places = rng.uniform((-110, -80, -90), (110, 80, 90), (16, 3))
  steps = np.stack(
    np.meshgrid(*[np.arange(-24.0, 25.0, 4.0)] * 3, indexing='ij'), axis=-1
  )
  patches = []
  for one in (patient, quiet):
    voxels = one.truth.scan_voxels(places.reshape(-1, 1, 1, 1, 3) + steps)
    hu = ndimage.map_coordinates(
      one.hu, np.moveaxis(voxels, -1, 0), order=1, output=np.float64
    )
    hu = np.clip(hu, -1000, 300).reshape(len(places), -1)
    hu -= hu.mean(1, keepdims=True)
    patches.append(hu / np.linalg.norm(hu, axis=1, keepdims=True))
  alike = patches[0] @ patches[1].T
  assert np.diag(alike).min() > 0.6
  assert (alike.argmax(1) == np.arange(len(places))).all()
  assert alike[~np.eye(len(places), dtype=bool)].mean() < 0.3


def test_strong_variation_of_slices_and_places():
  spacings = []
  for index in range(3):
    one = phantom.make_patient(9, index, (48, 48, 0), _STRONG)
    x, _, z = one.geometry.spacing
    assert 300.0 <= x * 48 <= 420.0
    assert 0.6 <= z <= 2.5
    assert 300.0 <= z * one.geometry.size[2] <= 360.0
    spacings.append(z)
  assert len(set(spacings)) == 3
  fixed = phantom.make_patient(9, 0, (48, 48, 40), _STRONG)
  assert fixed.geometry.size == (48, 48, 40)
  assert fixed.geometry.spacing[2] == spacings[0]


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'displacement_sd': 8.0}, r'displacement_sd is 8.0 mm; at most 6.0 mm'),
    ({'translation_sd': -1.0}, r'translation_sd must be 0 or more, got -1.0'),
    ({'scale': (1.2, 0.8)}, r'scale must be \(lowest, highest\) of 1e-06'),
    ({'noise': (0.0, float('nan'))}, r'noise must be .* of 0 or more'),
  ],
)
def test_senseless_variation_is_refused(changes, text):
  with pytest.raises(errors.UserError, match=text):
    phantom.Variation(**changes)


@pytest.mark.parametrize(
  ('thickness', 'text'),
  [(0.001, r'size 64,64,3\d{5} does not'), (999.0, r'size 64,64,1 does not')],
)
def test_slices_that_make_no_scan_are_refused(thickness, text):
  variation = phantom.Variation(slice_thickness=(thickness, thickness))
  with pytest.raises(errors.UserError, match=text):
    phantom.make_patient(1, 0, (64, 64, 0), variation)


@pytest.mark.parametrize('size', [(64, 64, 0), (1, 64, 64), (9999,) * 3])
def test_a_size_that_makes_no_scan_is_refused(tmp_path, size):
  text = f'size {size[0]},{size[1]},{size[2]} does not make a scan'
  with pytest.raises(errors.UserError, match=text):
    phantom.make_patient(1, 0, size)
  with pytest.raises(errors.UserError, match=text):
    phantom.write_luna16(os.fspath(tmp_path / 'new'), 1, size, 1)
  assert not (tmp_path / 'new').exists()


def _source():
  """Returns a small oblique scan with smooth contents and padding."""
  rng = np.random.default_rng(1)
  hu = ndimage.gaussian_filter(rng.normal(size=(70, 64, 40)), 3.0)
  hu = np.rint(hu / hu.std() * 300 - 300).astype(np.int16)
  hu[:3] = -3024
  turned = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
  geometry = geometry_lib.Geometry(
    hu.shape, (4.0, 4.5, 5.0), (-120.0, 40.0, -500.0), turned
  )
  return reader.Scan(hu, geometry)


def test_a_bent_scan_is_the_real_one_at_the_true_places():
  source = _source()
  variation = dataclasses.replace(
    phantom.variation_of(source), noise=(0.0, 0.0)
  )
  one = phantom.bend_scan(source, 2, 0, (64, 72, 48), variation)
  assert one.hu.shape == (64, 72, 48)
  assert one.lung_mask is None
  assert not one.nodules and not len(one.false_candidates)
  # ITK does the same from the transform alone.
  padded = np.maximum(source.hu, -1024).transpose(2, 1, 0)
  image = sitk.GetImageFromArray(padded.astype(np.float32))
  image.SetSpacing(source.geometry.spacing)
  image.SetOrigin(source.geometry.origin)
  image.SetDirection(source.geometry.direction)
  wanted = sitk.Resample(
    image,
    one.geometry.size,
    bend_lib.to_itk(one.truth.bend),
    sitk.sitkLinear,
    one.geometry.origin,
    one.geometry.spacing,
    one.geometry.direction,
    -1024.0,
  )
  wanted = sitk.GetArrayFromImage(wanted).transpose(2, 1, 0)
  voxels = np.stack(np.indices(one.hu.shape), axis=-1)
  places = one.template_coordinates(voxels)
  index = source.geometry.world_to_voxel(places)
  last = np.array(source.hu.shape) - 1
  inside = ((index > 0.01) & (index < last - 0.01)).all(-1)
  assert 0.4 < inside.mean() < 0.99
  np.testing.assert_allclose(one.hu[inside], wanted[inside], atol=0.6)
  outside = ((index < -0.01) | (index > last + 0.01)).any(-1)
  assert (one.hu[outside] == -1024).all()


def test_nodules_are_all_that_a_bent_scan_with_nodules_differs_in():
  patient = phantom.make_patient(4, 0, (128, 128, 96))
  source = reader.Scan(patient.hu, patient.geometry)
  lungs = real_lungs.find(source.hu, source.geometry)
  variation = dataclasses.replace(
    phantom.variation_of(source), nodules=(3, 3), diameter=(12.0, 20.0)
  )
  size = (96, 96, 64)
  one = phantom.bend_scan(source, 2, 5, size, variation, lungs)
  plain = phantom.bend_scan(source, 2, 5, size, variation)
  with_blobs = phantom.bend_scan(
    source,
    2,
    5,
    size,
    dataclasses.replace(variation, detected_candidates=True),
    lungs,
  )
  np.testing.assert_array_equal(with_blobs.hu, one.hu)
  assert (with_blobs.false_candidates[:1] != one.false_candidates[:1]).any()
  assert len(one.nodules) == 3 and not plain.nodules
  assert one.false_candidates.shape == (6, 3)
  points = one.geometry.voxel_to_world(
    np.stack(np.indices(one.hu.shape), axis=-1)
  )
  level = np.max([nodule.level(points) for nodule in one.nodules], axis=0)
  # An edge is as wide as a voxel, and its middle is the surface.
  edge = np.mean(one.geometry.spacing) / 2
  np.testing.assert_array_equal(one.hu[level < -edge], plain.hu[level < -edge])
  inside = level > edge
  assert inside.sum() > 15
  assert one.hu[inside].min() > -150
  assert plain.hu[inside].mean() < -600
  # Whole nodules lie in the lungs, which are warped with the scan.
  assert (one.lung_mask[level > 0] > 0).all()
  here = one.template_coordinates(np.argwhere(one.lung_mask == 3))
  voxels = np.rint(source.geometry.world_to_voxel(here)).astype(int)
  assert (lungs.mask[tuple(voxels.T)] == 3).mean() > 0.99
  for centre in one.false_candidates:
    voxel = np.rint(one.geometry.world_to_voxel(centre)).astype(int)
    assert one.lung_mask[tuple(voxel)] > 0
    assert np.max([nodule.level(centre) for nodule in one.nodules]) < -5.0


def test_a_bent_scan_is_repeated_by_its_seed():
  source = _source()
  one, same, other = (
    phantom.bend_scan(source, seed, 1, (48, 48, 32)) for seed in (2, 2, 3)
  )
  np.testing.assert_array_equal(one.hu, same.hu)
  assert one.scan_id == same.scan_id != other.scan_id
  assert (one.hu != other.hu).mean() > 0.5
  changed = reader.Scan(source.hu + np.int16(1), source.geometry)
  assert phantom.bend_scan(changed, 2, 1, (48, 48, 32)).scan_id != one.scan_id


@pytest.mark.long
def test_a_scan_of_luna16s_size_fits_in_two_gigabytes():
  code = (
    'import re; from transvw_tf2.scans import phantom;'
    'one = phantom.make_patient(1, 0, (512, 512, 300));'
    'assert one.hu.shape == (512, 512, 300);'
    # Not ru_maxrss, which begins with that of the process that started it.
    r'print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])'
  )
  kilobytes = int(subprocess.check_output([sys.executable, '-c', code]))
  assert kilobytes < 2_000_000
