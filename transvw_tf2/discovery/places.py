"""Places of visual words: where they may lie, and the boxes cut around them.

A place is the lower corner of a cube in voxels, indexed [x, y, z] (paper,
section III-A; the numbers are those of the published script).
"""

import dataclasses

import numpy as np

from transvw_tf2 import schema

# The soft-tissue filter looks two slices beyond the cube, and the published
# script keeps one more free.
_EXTRA_SLICES = 3
SOFT_TISSUE_HU = -150

# In-plane side and shift of the cubes of resolutions 1 and 2, in voxels.
_SIDES = (50, 80)
_SHIFTS = (-10, 10)


@dataclasses.dataclass(frozen=True)
class PlaceRange:
  """Inclusive range of the places of one scan.

  Attributes:
    low: lowest corner, voxels [x, y, z].
    high: highest corner, voxels [x, y, z].
    reduced: whether a border had to be reduced to fit the scan.
  """

  low: tuple[int, int, int]
  high: tuple[int, int, int]
  reduced: bool

  @property
  def empty(self) -> bool:
    return any(h < low for low, h in zip(self.low, self.high, strict=True))


def place_range(size, xy_border: int, z_border: int) -> PlaceRange:
  """Returns where the cubes of a scan of `size` voxels [x, y, z] may begin.

  The cube, the slices that the filter looks at and one more voxel lie between
  the borders. Along an axis that a border does not fit it is reduced to
  (side - cube side) // 4, or to what leaves a place at all.
  """
  low, high, reduced = [], [], False
  borders = (xy_border, xy_border, z_border)
  extras = (0, 0, _EXTRA_SLICES)
  for side, cube, border, extra in zip(
    size, schema.CUBE_SHAPE, borders, extras, strict=True
  ):
    last = side - cube - extra - 1
    if last - border < border:
      border = max(0, min((side - cube) // 4, last // 2))
      reduced = True
    low.append(border)
    high.append(last - border)
  return PlaceRange(tuple(low), tuple(high), reduced)


def soft_tissue_share(hu: np.ndarray, place) -> float:
  """Returns the share of soft tissue that the published filter sees.

  Each voxel counts 1 - k / 2 of soft tissue, where k is the first of 0, 1, 2
  slices further at which there is at least -150 HU, or 2. So the slice two
  further changes nothing: 1 where the voxel is soft tissue itself, 1/2 where
  only the one a slice further is, else 0.

  Args:
    hu: int16 [x, y, z], HU, the whole scan.
    place: lower corner, voxels [x, y, z], from a `place_range`.
  """
  x, y, z = place
  width, height, depth = schema.CUBE_SHAPE
  tissue = (
    hu[x : x + width, y : y + height, z : z + depth + 1] >= SOFT_TISSUE_HU
  )
  here, next_slice = tissue[..., :depth], tissue[..., 1:]
  total = np.count_nonzero(here) + 0.5 * np.count_nonzero(next_slice & ~here)
  return float(total / np.prod(schema.CUBE_SHAPE))


def draw_candidates(
  hu: np.ndarray,
  places: PlaceRange,
  rng: np.random.Generator,
  *,
  tries: int,
  max_soft_tissue: float,
) -> tuple[np.ndarray, bool]:
  """Draws places and keeps those that pass the soft-tissue filter.

  A scan whose borders were reduced is smaller, so mostly coarser, than the
  filter was made for: a cube may reach across the chest. Where no place of
  such a scan passes, the half with the least soft tissue is kept.

  Args:
    hu: int16 [x, y, z], HU, the whole scan.
    places: where the cubes may begin.
    rng: source of the places.
    tries: places drawn at most.
    max_soft_tissue: a place with a larger share of soft tissue is refused.

  Returns:
    int32 (n, 3), places in the order drawn, and whether the filter was relaxed.
  """
  if places.empty:
    return np.zeros((0, 3), np.int32), False
  drawn = rng.integers(places.low, np.add(places.high, 1), size=(tries, 3))
  shares = np.array([soft_tissue_share(hu, place) for place in drawn])
  relaxed = places.reduced and bool(np.all(shares > max_soft_tissue))
  limit = np.median(shares) if relaxed else max_soft_tissue
  return drawn[shares <= limit].astype(np.int32), relaxed


def cube_fits(place, size, scale=(1.0, 1.0, 1.0)) -> bool:
  """Returns whether a cube at `place` lies inside a scan of `size` voxels.

  Args:
    place: lower corner, voxels [x, y, z], not always whole ones.
    size: voxels of the scan [x, y, z].
    scale: voxels of the scan per voxel of the cube, [x, y, z].
  """
  return _lies_inside(*_round_box(place, schema.CUBE_SHAPE, scale), size)


def draw_box(
  place,
  resolution: int,
  size,
  rng: np.random.Generator,
  scale=(1.0, 1.0, 1.0),
):
  """Draws the box of voxels that becomes a cube of the given resolution.

  Resolution 0 is the cube itself. Resolutions 1 and 2 are a square in plane
  with a side of 50 to 79 voxels, shifted by -10 to 9 voxels in x and y; side
  and shift are redrawn together until the box lies inside the scan. With a
  scale, these are voxels of the reference.

  Args:
    place: lower corner, voxels [x, y, z], where a cube fits.
    resolution: one of `schema.RESOLUTIONS`.
    size: voxels of the scan [x, y, z].
    rng: source of side and shift.
    scale: voxels of the scan per voxel of the cube, [x, y, z].

  Returns:
    (origin, size) of the box, two tuples of 3 ints in voxels [x, y, z].

  Raises:
    ValueError: a cube does not fit; a box might then never be found.
  """
  if not cube_fits(place, size, scale):
    raise ValueError(f'no cube fits at {place} in a scan of {size} voxels')
  if resolution == 0:
    return _round_box(place, schema.CUBE_SHAPE, scale)
  # A square that is not shifted out of the cube always fits, so this ends.
  while True:
    side = int(rng.integers(*_SIDES))
    dx, dy = (int(shift) for shift in rng.integers(*_SHIFTS, size=2))
    corner = np.add(place, np.multiply((dx, dy, 0), scale))
    sides = (side, side, schema.CUBE_SHAPE[2])
    box = _round_box(corner, sides, scale)
    if _lies_inside(*box, size):
      return box


def _round_box(corner, sides, scale):
  """Rounds both ends of a box to voxels: (origin, size) in tuples of ints."""
  ends = np.rint([corner, np.add(corner, np.multiply(sides, scale))])
  origin, end = ends.astype(int)
  box = np.maximum(end - origin, 1)
  return tuple(origin.tolist()), tuple(box.tolist())


def _lies_inside(origin, box, size) -> bool:
  return all(
    corner >= 0 and corner + length <= side
    for corner, length, side in zip(origin, box, size, strict=True)
  )
