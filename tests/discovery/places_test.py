"""Places against the words of the paper and of the published script."""

import numpy as np
import pytest

from transvw_tf2 import schema
from transvw_tf2.discovery import places


def test_range_of_a_luna16_scan():
  found = places.place_range((512, 400, 150), 100, 30)
  assert found.low == (100, 100, 30)
  assert found.high == (512 - 165, 400 - 165, 150 - 66)
  assert not found.reduced
  assert not found.empty


def test_the_smallest_scan_of_the_published_borders():
  found = places.place_range((265, 265, 96), 100, 30)
  assert found == places.PlaceRange((100, 100, 30), (100, 100, 30), False)
  for size in ((264, 265, 96), (265, 264, 96), (265, 265, 95)):
    assert places.place_range(size, 100, 30).reduced


@pytest.mark.parametrize(
  ('size', 'low', 'high'),
  [
    ((192, 192, 128), (32, 32, 30), (95, 95, 62)),
    ((192, 300, 64), (32, 100, 8), (95, 135, 20)),
    ((96, 80, 48), (8, 4, 4), (23, 11, 8)),
    ((65, 66, 36), (0, 0, 0), (0, 1, 0)),
    ((68, 69, 37), (1, 1, 0), (2, 3, 1)),
    ((70, 70, 38), (1, 1, 1), (4, 4, 1)),
  ],
)
def test_borders_that_do_not_fit_are_reduced(size, low, high):
  assert places.place_range(size, 100, 30) == places.PlaceRange(low, high, True)


@pytest.mark.parametrize('border', [0, 1, 5, 30, 100])
def test_every_range_holds_what_it_says(border):
  for side in range(32, 300):
    size = (side + 32, side + 32, side)
    found = places.place_range(size, border, border)
    assert found.empty == (side < 36)
    if found.empty:
      continue
    for axis, (cube, extra) in enumerate(((64, 0), (64, 0), (32, 3))):
      low, high = found.low[axis], found.high[axis]
      assert 0 <= low <= high
      assert low <= border
      # The cube, its extra slices and a border as wide lie behind.
      assert high + cube + extra + 1 + low == size[axis]
      if low < border:
        assert size[axis] - cube - extra - 1 - border < border
        assert low in (
          (size[axis] - cube) // 4,
          (size[axis] - cube - extra - 1) // 2,
        )


def test_a_scan_without_room_has_no_place():
  for size in ((64, 100, 100), (100, 64, 100), (100, 100, 35)):
    found = places.place_range(size, 0, 0)
    assert found.empty
    drawn, relaxed = places.draw_candidates(
      np.full(size, -1000, np.int16),
      found,
      np.random.default_rng(0),
      tries=5,
      max_soft_tissue=1.0,
    )
    assert drawn.shape == (0, 3)
    assert not relaxed


def _share_by_brute_force(hu, place):
  """The filter of the published script, word by word, over 34 slices."""
  x, y, z = place
  crop = hu[x : x + 64, y : y + 64, z : z + 34].astype(np.float64)
  crop = (np.clip(crop, -1000, 1000) + 1000) / 2000
  total = 0.0
  for i in range(64):
    for j in range(64):
      for d in range(32):
        for k in (0, 1, 2):
          if crop[i, j, d + k] >= 0.425:
            break
        total += 1 - k / 2
  return total / (64 * 64 * 32)


@pytest.mark.parametrize('share', [0.02, 0.3])
def test_soft_tissue_share_is_that_of_the_published_script(share):
  rng = np.random.default_rng(0)
  hu = rng.choice(
    np.array([-1000, -151, -150, 60], np.int16),
    size=(70, 66, 40),
    p=[0.5, 0.5 - share, share / 2, share / 2],
  )
  for place in ((0, 0, 0), (5, 1, 6), (6, 2, 5)):
    found = places.soft_tissue_share(hu, place)
    assert found == pytest.approx(_share_by_brute_force(hu, place), abs=1e-12)
    assert share < found < 2 * share


@pytest.mark.parametrize(
  ('slices', 'share'),
  [
    ([0], 1 / 32),
    ([31], 1.5 / 32),  # itself, and half for the slice below
    ([32], 0.5 / 32),
    ([33], 0.0),  # looked at, but counts for nothing
    (range(34), 1.0),
    ([], 0.0),
  ],
)
def test_what_a_slice_of_soft_tissue_counts(slices, share):
  hu = np.full((64, 64, 34), -900, np.int16)
  hu[:, :, list(slices)] = 0
  assert places.soft_tissue_share(hu, (0, 0, 0)) == share
  assert _share_by_brute_force(hu, (0, 0, 0)) == share


def _draw(hu, found, seed=0, tries=200, most=0.15):
  return places.draw_candidates(
    hu,
    found,
    np.random.default_rng(seed),
    tries=tries,
    max_soft_tissue=most,
  )[0]


def test_candidates_are_uniform_over_the_inclusive_range():
  size = (70, 67, 40)
  found = places.PlaceRange((1, 2, 0), (3, 3, 1), False)
  hu = np.full(size, -900, np.int16)
  drawn = _draw(hu, found, tries=3000)
  assert drawn.dtype == np.int32
  assert drawn.shape == (3000, 3)
  for axis, values in enumerate(([1, 2, 3], [2, 3], [0, 1])):
    got, counts = np.unique(drawn[:, axis], return_counts=True)
    assert got.tolist() == values
    # Five standard deviations.
    share = 1 / len(values)
    sd = np.sqrt(3000 * share * (1 - share))
    assert np.abs(counts - 3000 * share).max() < 5 * sd


def test_candidates_keep_the_order_drawn_and_pass_the_filter():
  size = (130, 66, 40)
  hu = np.full(size, -900, np.int16)
  hu[80:] = 50
  found = places.place_range(size, 0, 0)
  everything = _draw(hu, found, most=1.0)
  kept = _draw(hu, found)
  wanted = [
    place
    for place in everything.tolist()
    if np.mean(hu[place[0] : place[0] + 64, 0, 0] == 50) <= 0.15
  ]
  assert 0 < len(wanted) < 200
  assert kept.tolist() == wanted


def test_a_share_of_just_the_limit_passes():
  hu = np.full((66, 66, 37), -900, np.int16)
  hu[:, :, :8] = 0
  found = places.PlaceRange((0, 0, 0), (0, 0, 0), False)
  assert len(_draw(hu, found, tries=3, most=0.25)) == 3
  assert len(_draw(hu, found, tries=3, most=0.2499)) == 0


@pytest.mark.parametrize('reduced', [False, True])
def test_the_filter_is_relaxed_only_for_small_scans(reduced):
  """A wedge of tissue, thicker further along x, that no cube avoids."""
  hu = np.full((110, 66, 40), -900, np.int16)
  for x in range(110):
    hu[x, : 30 + x // 4] = 50
  found = places.PlaceRange((0, 0, 0), (46, 2, 4), reduced)
  rng = np.random.default_rng(0)
  kept, relaxed = places.draw_candidates(
    hu, found, rng, tries=99, max_soft_tissue=0.15
  )
  assert relaxed is reduced
  if not reduced:
    assert kept.shape == (0, 3)
    return
  drawn = np.random.default_rng(0).integers((0, 0, 0), (47, 3, 5), (99, 3))
  shares = [_share_by_brute_force(hu, place) for place in drawn[:12]]
  assert min(shares) > 0.15
  # The half with the least tissue: small x, for y matters less.
  assert 50 <= len(kept) <= 60
  assert np.median(kept[:, 0]) < np.median(drawn[:, 0])
  kept_rows = {tuple(row) for row in kept.tolist()}
  order = np.argsort(shares)
  assert tuple(drawn[order[0]].tolist()) in kept_rows
  assert tuple(drawn[order[-1]].tolist()) not in kept_rows


def test_the_filter_is_not_relaxed_where_a_place_passes():
  hu = np.full((110, 66, 40), 50, np.int16)
  hu[:64] = -900
  found = places.PlaceRange((0, 0, 0), (46, 1, 3), True)
  rng = np.random.default_rng(0)
  kept, relaxed = places.draw_candidates(
    hu, found, rng, tries=200, max_soft_tissue=0.15
  )
  assert not relaxed
  assert 0 < len(kept) < 100
  assert kept[:, 0].max() <= 0.15 * 64


def test_candidates_depend_on_the_seed_alone():
  hu = np.full((100, 100, 60), -900, np.int16)
  found = places.place_range(hu.shape, 5, 5)
  np.testing.assert_array_equal(_draw(hu, found), _draw(hu, found))
  assert not np.array_equal(_draw(hu, found), _draw(hu, found, seed=1))


@pytest.mark.parametrize(
  ('place', 'fits'),
  [
    ((0, 0, 0), True),
    ((6, 16, 8), True),
    ((7, 0, 0), False),
    ((0, 17, 0), False),
    ((0, 0, 9), False),
    ((-1, 0, 0), False),
  ],
)
def test_cube_fits(place, fits):
  assert places.cube_fits(place, (70, 80, 40)) is fits


def test_resolution_0_is_the_cube():
  rng = np.random.default_rng(0)
  box = places.draw_box(np.array([3, 4, 5]), 0, (80, 80, 40), rng)
  assert box == ((3, 4, 5), schema.CUBE_SHAPE)
  assert all(type(one) is int for one in box[0])


@pytest.mark.parametrize('resolution', [1, 2])
def test_side_and_shift_are_uniform_where_there_is_room(resolution):
  place, size = (100, 120, 30), (300, 300, 100)
  rng = np.random.default_rng(resolution)
  boxes = [places.draw_box(place, resolution, size, rng) for _ in range(4000)]
  origins = np.array([origin for origin, _ in boxes])
  sides = np.array([sides for _, sides in boxes])
  assert np.all(origins[:, 2] == 30) and np.all(sides[:, 2] == 32)
  assert np.array_equal(sides[:, 0], sides[:, 1])
  for values, low, high in (
    (sides[:, 0], 50, 80),
    (origins[:, 0] - 100, -10, 10),
    (origins[:, 1] - 120, -10, 10),
  ):
    got, counts = np.unique(values, return_counts=True)
    assert got.tolist() == list(range(low, high))
    share = 1 / (high - low)
    sd = np.sqrt(4000 * share * (1 - share))
    assert np.abs(counts - 4000 * share).max() < 5 * sd
  assert abs(np.corrcoef(origins[:, 0], origins[:, 1])[0, 1]) < 0.08


@pytest.mark.parametrize(
  ('place', 'size'),
  [
    ((0, 0, 0), (64, 64, 32)),
    ((6, 0, 3), (70, 64, 40)),
    ((0, 36, 0), (200, 100, 32)),
  ],
)
def test_boxes_at_the_rim_are_redrawn_until_inside(place, size):
  rng = np.random.default_rng(0)
  drawn = set()
  for _ in range(300):
    (x, y, z), (side, same, depth) = places.draw_box(place, 1, size, rng)
    assert side == same and depth == 32 and z == place[2]
    assert 50 <= side < 80
    assert -10 <= x - place[0] < 10 and -10 <= y - place[1] < 10
    assert x >= 0 and y >= 0
    assert x + side <= size[0] and y + side <= size[1]
    drawn.add((x, y, side))
  assert len(drawn) > 50


def test_side_and_shift_are_redrawn_together():
  """All boxes that lie inside are as likely as each other."""
  place, size = (0, 0, 0), (64, 64, 32)
  inside = [
    (dx, dy, side)
    for side in range(50, 80)
    for dx in range(10)
    for dy in range(10)
    if max(dx, dy) + side <= 64
  ]
  rng = np.random.default_rng(2)
  mean_side = np.mean(
    [places.draw_box(place, 2, size, rng)[1][0] for _ in range(1500)]
  )
  sides = np.array([side for _, _, side in inside])
  assert mean_side == pytest.approx(
    sides.mean(), abs=5 * sides.std() / np.sqrt(1500)
  )


def test_where_no_cube_fits_no_box_is_looked_for():
  rng = np.random.default_rng(0)
  for resolution in schema.RESOLUTIONS:
    with pytest.raises(ValueError, match='no cube fits at'):
      places.draw_box((0, 0, 0), resolution, (49, 100, 40), rng)


def test_a_scaled_box_is_rounded_at_both_ends():
  rng = np.random.default_rng(0)
  place, scale = (3.3, 10.6, 2.25), (0.5, 1.25, 0.5)
  # 3.3 to 35.3, 10.6 to 90.6, 2.25 to 18.25
  box = places.draw_box(place, 0, (40, 95, 20), rng, scale)
  assert box == ((3, 11, 2), (32, 80, 16))
  for size, fits in (
    ((35, 91, 18), True),
    ((34, 91, 18), False),
    ((35, 90, 18), False),
    ((35, 91, 17), False),
  ):
    assert places.cube_fits(place, size, scale) is fits
  assert not places.cube_fits((-0.6, 0, 0), (200, 200, 200), scale)
  assert places.cube_fits((-0.4, 0, 0), (200, 200, 200), scale)


def test_scaled_boxes_lie_inside_and_are_those_of_the_reference_scaled():
  place, scale, size = (20.2, 30.7, 8.9), (0.5, 1.5, 2.0), (70, 160, 73)
  boxes = [
    places.draw_box(place, 1, size, np.random.default_rng(seed), scale)
    for seed in range(300)
  ]
  for seed, (origin, sides) in enumerate(boxes):
    assert min(origin) >= 0
    assert np.all(np.add(origin, sides) <= size)
    assert (origin[2], sides[2]) == (9, 64)  # 8.9 to 72.9
    # A scan large enough takes the first that is drawn.
    rng = np.random.default_rng(seed)
    side, shift = rng.integers(50, 80), rng.integers(-10, 10, size=2)
    low = np.add(place[:2], shift * np.array(scale[:2]))
    high = low + side * np.array(scale[:2])
    if min(low) >= 0 and np.all(high <= size[:2]):
      assert origin[:2] == tuple(np.rint(low))
      assert tuple(np.add(origin, sides)[:2]) == tuple(np.rint(high))


def test_a_scaled_box_has_a_voxel_at_least():
  box = places.draw_box(
    (5, 5, 5), 0, (10, 10, 10), np.random.default_rng(0), (0.01, 0.01, 0.001)
  )
  assert box == ((5, 5, 5), (1, 1, 1))
