"""The box of the lungs, in bodies whose lungs are known."""

import os

import numpy as np
import pytest
from scipy import optimize

from tests import real_ct
from transvw_tf2.scans import lung_box
from transvw_tf2.scans import reader

# mm around the middle: semi-axes and centres.
_BODY = (170.0, 110.0, 400.0)
_LUNG = (62.0, 80.0, 115.0)
_OFFSET = 78.0


def _grid(shape, spacing, shift):
  """Returns mm of voxel centres along x, y and z, to be broadcast."""
  axes = [
    (np.arange(side) + 0.5 - side / 2) * step - move
    for side, step, move in zip(shape, spacing, shift, strict=True)
  ]
  return np.meshgrid(*axes, indexing='ij', sparse=True)


def _inside(grid, semi_axes, centre=(0, 0, 0)):
  return (
    sum(
      ((along - at) / semi) ** 2
      for along, at, semi in zip(grid, centre, semi_axes, strict=True)
    )
    < 1
  )


def _scan(
  shape=(144, 110, 90),
  spacing=(2.6, 2.6, 3.6),
  shift=(0, 0, 0),
  noise=0,
  parts=('table', 'windpipe', 'stomach', 'emphysema'),
):
  """Makes a chest: int16 [x, y, z], HU, lungs of -850 HU."""
  x, y, z = grid = _grid(shape, spacing, shift)
  hu = np.full(shape, -1000.0)
  hu[_inside(grid, _BODY)] = 40
  for side in (-1, 1):
    lung = _inside(grid, _LUNG, (side * _OFFSET, 0, 0))
    if 'lungs' not in parts or side == 1:
      hu[lung] = -850
  if 'windpipe' in parts:
    # Up to the neck, with both main bronchi, so that it joins the lungs.
    pipe = (np.hypot(x, y) < 9) & (z > 20)
    pipe |= (np.abs(x) < 30) & (np.hypot(y, z - 20) < 6)
    hu[pipe] = -1000
  if 'stomach' in parts:
    hu[_inside(grid, (45, 40, 25), (70, -30, -150))] = -990
  if 'emphysema' in parts:
    hu[_inside(grid, (25, 25, 25), (_OFFSET, 20, 40))] = -985
  if 'table' in parts:
    bed = (np.abs(x) < 215) & (y > 118) & (y < 138) & (z > -1e9)
    hu[bed] = -920
    hu[bed & ((y < 121) | (y > 135))] = -100
  rng = np.random.default_rng(0)
  if noise:
    hu = hu + rng.normal(0, noise, shape)
  return np.rint(hu.clip(-1024, 3071)).astype(np.int16)


def _expected(shape, spacing, shift=(0, 0, 0)):
  """The box of two ellipsoids without 2 % of their volume at each side."""

  def below(at):  # share of a ball's volume below a plane, -1 to 1
    return (2 + 3 * at - at**3) / 4

  one = optimize.brentq(lambda at: below(at) - 0.02, -1, 1)
  # Along x the outer lung holds half of the volume.
  outer = optimize.brentq(lambda at: below(at) - 0.04, -1, 1)
  reach = np.array(
    [_OFFSET - outer * _LUNG[0], -one * _LUNG[1], -one * _LUNG[2]]
  )
  middle = np.divide(shape, 2) + np.divide(shift, spacing)
  return middle - reach / spacing, middle + reach / spacing


def _check(box, wanted, spacing, tolerance=2.5):
  low, high = wanted
  np.testing.assert_allclose(
    np.multiply(box.low, spacing), low * spacing, atol=tolerance
  )
  np.testing.assert_allclose(
    np.multiply(box.high, spacing), high * spacing, atol=tolerance
  )


@pytest.mark.parametrize(
  ('shape', 'spacing'),
  [
    ((144, 110, 90), (2.6, 2.6, 3.6)),
    ((190, 150, 280), (2.0, 2.0, 1.2)),
    ((100, 75, 65), (3.8, 3.8, 5.0)),
  ],
)
def test_lungs_are_found_at_any_spacing(shape, spacing):
  hu = _scan(shape, spacing)
  hu.setflags(write=False)
  box = lung_box.find(hu, spacing)
  _check(box, _expected(shape, spacing), spacing)
  assert box.low_cut == box.high_cut == (False, False, False)
  assert all(type(one) is float for one in (*box.low, *box.high))


@pytest.mark.parametrize('noise', [30, 60])
def test_noise_hardly_matters(noise):
  spacing = (2.6, 2.6, 3.6)
  box = lung_box.find(_scan(noise=noise), spacing)
  _check(box, _expected((144, 110, 90), spacing), spacing, tolerance=4)


def test_table_windpipe_stomach_and_emphysema_do_not_matter():
  bare = lung_box.find(_scan(parts=()), (2.6, 2.6, 3.6))
  for part in ('table', 'windpipe', 'stomach', 'emphysema'):
    box = lung_box.find(_scan(parts=(part,)), (2.6, 2.6, 3.6))
    for mine, other in ((box.low, bare.low), (box.high, bare.high)):
      np.testing.assert_allclose(
        np.multiply(mine, (2.6, 2.6, 3.6)),
        np.multiply(other, (2.6, 2.6, 3.6)),
        atol=2.0,
      )


def test_the_box_moves_with_the_patient():
  spacing, shift = (2.6, 2.6, 3.6), (13.0, -15.6, 18.0)
  box = lung_box.find(_scan(shift=shift), spacing)
  _check(box, _expected((144, 110, 90), spacing, shift), spacing)


def test_padding_outside_of_a_round_field_of_view_is_air():
  hu = _scan()
  x, y, _ = _grid(hu.shape, (2.6, 2.6, 3.6), (0, 0, 0))
  hu[np.broadcast_to(np.hypot(x, y) > 180, hu.shape)] = -3024
  box = lung_box.find(hu, (2.6, 2.6, 3.6))
  _check(box, _expected(hu.shape, (2.6, 2.6, 3.6)), (2.6, 2.6, 3.6))


def test_a_scan_that_ends_within_the_lungs_says_so():
  spacing = (2.6, 2.6, 3.6)
  hu = _scan()
  # z runs from -162 to 162 mm, the lungs from -115 to 115.
  box = lung_box.find(hu[:, :, 45:], spacing)
  assert box.low_cut == (False, False, True)
  assert box.high_cut == (False, False, False)
  assert box.low[2] < 2
  box = lung_box.find(hu[:, :, :40], spacing)
  assert box.high_cut == (False, False, True)
  # A rim of 8 mm is missing: hardly anything.
  box = lung_box.find(hu[:, :, 15:], spacing)
  assert box.low_cut == (False, False, False)
  low, high = _expected(hu.shape, spacing)
  _check(box, (low - (0, 0, 15), high - (0, 0, 15)), spacing, tolerance=6)


def test_a_field_of_view_that_cuts_the_sides_still_shows_lungs():
  hu = _scan()
  # The lungs begin 140 mm left of the middle, the chest at 170.
  box = lung_box.find(hu[35:], (2.6, 2.6, 3.6))  # from -96 mm
  assert box.low_cut == (True, False, False)
  assert box.low[0] < 2
  low, high = _expected(hu.shape, (2.6, 2.6, 3.6))
  assert abs(box.high[0] + 35 - high[0]) * 2.6 < 4
  assert abs(box.low[1] - low[1]) * 2.6 < 5


def test_lungs_cut_at_both_ends_give_no_box():
  assert lung_box.find(_scan()[:, :, 38:52], (2.6, 2.6, 3.6)) is None


@pytest.mark.parametrize(
  'hu',
  [
    np.full((80, 80, 48), -1000, np.int16),
    np.full((80, 80, 48), 40, np.int16),
    np.full((80, 80, 48), -850, np.int16),
    np.full((2, 2, 2), -850, np.int16),
    np.random.default_rng(0).integers(-1000, 1000, (80, 80, 48), np.int16),
  ],
)
def test_no_lungs_give_no_box(hu):
  assert lung_box.find(hu, (2.0, 2.0, 2.5)) is None


def test_an_abdomen_with_gas_has_no_lungs():
  hu = np.full((144, 110, 60), -1000, np.int16)
  grid = _grid(hu.shape, (2.6, 2.6, 3.6), (0, 0, 0))
  hu[_inside(grid, _BODY)] = 40
  hu[_inside(grid, (60, 50, 60))] = -995
  hu[_inside(grid, (20, 20, 20), (90, 0, 0))] = -700  # 34 ml of stool
  assert lung_box.find(hu, (2.6, 2.6, 3.6)) is None


def test_the_same_scan_gives_the_same_box():
  hu = _scan(noise=30)
  assert lung_box.find(hu, (2.6, 2.6, 3.6)) == lung_box.find(
    np.asfortranarray(hu), (2.6, 2.6, 3.6)
  )


def test_block_means_are_means_of_blocks():
  rng = np.random.default_rng(1)
  hu = rng.integers(-1500, 1500, (13, 17, 11), np.int16)
  means = lung_box.block_means(hu, (3, 4, 2))
  assert (means.shape, means.dtype) == ((4, 4, 5), np.float32)
  clipped = hu.astype(float).clip(-1024, 1000)
  for x, y, z in ((0, 0, 0), (3, 3, 4), (1, 2, 3)):
    block = clipped[3 * x : 3 * x + 3, 4 * y : 4 * y + 4, 2 * z : 2 * z + 2]
    assert means[x, y, z] == pytest.approx(block.mean(), abs=1e-3)


def test_a_real_scan_has_its_lungs_in_the_box():
  path = real_ct.path()
  scan = reader.read_scan(os.fspath(path))
  box = lung_box.find(scan.hu, scan.geometry.spacing)
  # Read off the slices by eye, to a centimetre; the scan ends at the base.
  low = np.multiply(box.low, scan.geometry.spacing)
  high = np.multiply(box.high, scan.geometry.spacing)
  np.testing.assert_allclose(low, (45, 136, 10), atol=10)
  np.testing.assert_allclose(high, (248, 263, 190), atol=10)
