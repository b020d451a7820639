"""The template is a chest: tissues, two lungs, ribs, and left is not right."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from transvw_tf2.scans.anatomy import template as template_lib


@pytest.fixture(scope='module')
def template():
  return template_lib.draw()


def _voxel(template, place):
  return np.rint(template.geometry.world_to_voxel(place)).astype(int)


def _around(array, voxel):
  return array[tuple(slice(one - 1, one + 2) for one in voxel)]


def test_it_is_drawn_once(template):
  assert template_lib.draw() is template
  assert template.hu.dtype == np.int16
  assert template.lungs.dtype == np.uint8
  assert template.hu.shape == template.lungs.shape == template.geometry.size


@pytest.mark.parametrize('name', template_lib.LANDMARKS)
def test_tissues_have_their_hu(template, name):
  tissue, place = template_lib.LANDMARKS[name]
  low, high = template_lib.TISSUE_HU[tissue]
  values = _around(template.hu, _voxel(template, place))
  assert low <= values.mean() <= high
  assert low <= np.median(values) <= high


def test_the_ranges_are_those_of_ct():
  ranges = template_lib.TISSUE_HU
  assert ranges['lung'] == (-900, -700)
  order = ['air', 'lung', 'fat', 'muscle', 'bone']
  for lower, higher in itertools.pairwise(order):
    assert ranges[lower][1] < ranges[higher][0]


def test_around_the_body_is_air(template):
  for face in (template.hu[[0, -1]], template.hu[:, [0, -1]]):
    assert (face == -1000).all()


def test_each_lung_is_one_piece_on_its_side(template):
  for label, side in ((3, 1), (4, -1)):
    lung = template.lungs == label
    sizes = np.bincount(ndimage.label(lung)[0].ravel())[1:]
    assert sizes.max() > 0.999 * sizes.sum()
    assert 1.5e6 < sizes.sum() * np.prod(template.geometry.spacing) < 3.5e6
    x = template.geometry.voxel_to_world(np.argwhere(lung))[:, 0]
    # x runs to the patient's left; a tongue of lung may cross the middle.
    assert (side * x > 0).mean() > 0.98
  assert set(np.unique(template.lungs)) == {0, 3, 4}


def test_the_lungs_are_dark_with_bright_vessels(template):
  inside = ndimage.binary_erosion(template.lungs > 0, iterations=4)
  values = template.hu[inside]
  assert -900 < np.median(values) < -780
  # About a tenth of a lung is blood.
  assert 0.03 < (values > -300).mean() < 0.15


def test_no_air_leads_from_the_windpipe_into_a_lung(template):
  air, _ = ndimage.label(template.hu < -400, np.ones((3, 3, 3)))
  windpipe = air[tuple(_voxel(template, (-1.0, 16.0, 90.0)))]
  assert windpipe > 0
  for place in ((-15.0, 25.0, 18.0), (20.0, 25.0, 15.0)):
    assert air[tuple(_voxel(template, place))] == windpipe
  assert not (template.lungs[air == windpipe] > 0).any()
  # The air of one lung does not lead into the other, nor out of the body.
  left = set(np.unique(air[(template.lungs == 3) & (air > 0)]))
  right = set(np.unique(air[(template.lungs == 4) & (air > 0)]))
  assert not left & right
  assert air[0, 0, 0] not in left | right


def test_ribs_are_cut_one_by_one_at_the_side(template):
  for x in (-110.0, 110.0):
    plane = _voxel(template, (x, 0.0, 0.0))[0]
    # Behind the middle, where the ribs cross upright planes.
    back = _voxel(template, (0.0, 30.0, 0.0))[1]
    bones = template.hu[plane, back:] > 250
    sizes = np.bincount(ndimage.label(bones)[0].ravel())[1:]
    assert 7 <= (sizes > 6).sum() <= 14


def test_heart_and_aorta_are_left_and_the_liver_is_right(template):
  soft = (template.hu > 0) & (template.hu < 100)
  places = template.geometry.voxel_to_world(np.argwhere(soft))
  x, y, z = places.T
  heart = x[(np.abs(z + 50) < 10) & (np.abs(x) < 90) & (y < 20) & (y > -80)]
  assert heart.mean() > 5.0
  upper = (np.abs(z + 100) < 5) & (np.abs(x) < 110) & (np.abs(y) < 70)
  assert (x[upper] < 0).sum() > 1.2 * (x[upper] > 0).sum()


def test_vessels_and_back_lie_where_they_say(template):
  voxels = _voxel(template, template.vessels)
  assert len(voxels) > 1000
  assert (template.lungs[tuple(voxels.T)] > 0).all()
  assert (template.hu[tuple(voxels.T)] > -250).all()
  x, y, z = _voxel(template, template.back).T
  assert (template.hu[x, y, z] > -500).all()
  assert (template.hu[x, y + 1, z] <= -500).all()
  assert template.back[:, 1].max() > 100
