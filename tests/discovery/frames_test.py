"""Carrying a place by the lungs, against places known beforehand."""

import numpy as np
import pytest

from transvw_tf2.discovery import frames
from transvw_tf2.scans import lung_box

_CUBE = (64, 64, 32)
_SPACING = (0.7, 0.7, 1.25)
_LUNGS = lung_box.LungBox((100.0, 120.0, 30.0), (400.0, 360.0, 230.0))


def _middle(carried):
  return carried.corner + np.multiply(_CUBE, carried.scale) / 2


def test_the_reference_is_carried_to_itself():
  carried = frames.carry(
    (150.0, 200.0, 96.0), _CUBE, _LUNGS, _SPACING, _LUNGS, _SPACING
  )
  np.testing.assert_allclose(carried.corner, (118, 168, 80), atol=1e-9)
  np.testing.assert_array_equal(carried.scale, 1.0)


def test_an_affine_patient_shows_the_same_place():
  """Stretching, shifting and other voxels: places go with the lungs."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    stretch, shift = rng.uniform(0.8, 1.25, 3), rng.normal(0, 30, 3)
    spacing = rng.uniform(0.5, 2.5, 3)

    def moved(
      voxels, stretch=stretch, shift=shift, spacing=spacing
    ):  # voxels of the reference to voxels of the patient
      return (np.multiply(voxels, _SPACING) * stretch + shift) / spacing

    lungs = lung_box.LungBox(
      tuple(moved(_LUNGS.low)), tuple(moved(_LUNGS.high))
    )
    centre = rng.uniform(100, 300, 3)
    carried = frames.carry(
      centre, _CUBE, _LUNGS, _SPACING, lungs, tuple(spacing)
    )
    np.testing.assert_allclose(_middle(carried), moved(centre), atol=1e-6)
    # The size in mm does not go with them.
    np.testing.assert_allclose(
      np.multiply(_CUBE, carried.scale) * spacing,
      np.multiply(_CUBE, _SPACING),
    )


@pytest.mark.parametrize('of_reference', [True, False])
@pytest.mark.parametrize('axis', [0, 2])
def test_where_one_side_is_cut_the_distance_to_the_other_is_kept(
  axis, of_reference
):
  spacing = (0.5, 0.9, 2.0)
  boxes = {
    'reference': _LUNGS,
    'patient': lung_box.LungBox((80.0, 50.0, 12.0), (390.0, 350.0, 170.0)),
  }
  centre = np.array([150.0, 200.0, 96.0])
  cut_one = 'reference' if of_reference else 'patient'
  for side, cut in (('low', 'low_cut'), ('high', 'high_cut')):
    flags = tuple(one == axis for one in range(3))
    cut_boxes = boxes | {
      cut_one: lung_box.LungBox(
        boxes[cut_one].low, boxes[cut_one].high, **{cut: flags}
      )
    }
    carried = frames.carry(
      centre,
      _CUBE,
      cut_boxes['reference'],
      _SPACING,
      cut_boxes['patient'],
      spacing,
    )
    kept = 'high' if side == 'low' else 'low'
    before, after = (
      (getattr(box, kept)[axis] - place[axis]) * steps[axis]
      for box, place, steps in (
        (boxes['reference'], centre, _SPACING),
        (boxes['patient'], _middle(carried), spacing),
      )
    )
    assert before == pytest.approx(after)
    # The other axes are as without.
    plain = frames.carry(
      centre,
      _CUBE,
      boxes['reference'],
      _SPACING,
      boxes['patient'],
      spacing,
    )
    others = [one for one in range(3) if one != axis]
    np.testing.assert_allclose(carried.corner[others], plain.corner[others])
    assert abs(carried.corner[axis] - plain.corner[axis]) > 1


def test_nothing_is_carried_between_opposite_cuts():
  one = lung_box.LungBox(_LUNGS.low, _LUNGS.high, low_cut=(False, False, True))
  other = lung_box.LungBox(
    _LUNGS.low, _LUNGS.high, high_cut=(False, False, True)
  )
  for first, second in ((one, other), (other, one)):
    assert (
      frames.carry((150, 200, 96), _CUBE, first, _SPACING, second, _SPACING)
      is None
    )
