"""Where the cubes of target tasks lie in a scan that was read.

Each class below says what is wanted of a scan; its `find` gives the boxes, and
what cannot be had with the reason, its `most_cubes` the most that there can be.
Random places are drawn from the seed and the id of the scan.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import numpy as np

from transvw_tf2 import schema
from transvw_tf2.scans import masks
from transvw_tf2.scans import reader
from transvw_tf2.scans import target_cubes

OUTSIDE = 'outside_scan'
NOT_IN_MASK = 'not_in_mask'
MASK_TOO_FINE = 'mask_too_fine'
NO_FREE_PLACE = 'no_free_place'
# Places that are tried for a cube without a part of the mask.
_TRIES = 100

Point = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Target:
  """A cube that can be cut.

  Attributes:
    number: of the cube among those of its scan.
    box: in the scan.
    label: number of its class; 0 where a mask is the label.
    point: that has the label, world mm (LPS); None where it is not a point.
  """

  number: int
  box: target_cubes.Box
  label: int = 0
  point: Point | None = None


@dataclasses.dataclass(frozen=True)
class Targets:
  """What a scan gives.

  Attributes:
    cubes: all that can be cut.
    cut_mask: gives the mask of a box, uint8 [x, y, z]; None where a label is
      what is learnt.
    touches: tells whether any voxel of the scan in a box is in the mask, which
      nearest neighbours may lose in `cut_mask`.
    rejected: (reason, detail) of what cannot be had.
  """

  cubes: list[Target]
  cut_mask: Callable[[target_cubes.Box], np.ndarray] | None = None
  touches: Callable[[target_cubes.Box], bool] | None = None
  rejected: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class AroundPoints:
  """Cubes around places that have a label.

  Attributes:
    points: world mm (LPS), each with the number of its class.
    cube: size of the cubes.
  """

  points: tuple[tuple[Point, int], ...]
  cube: target_cubes.CubeSize

  @property
  def most_cubes(self) -> int:
    return len(self.points)

  def find(self, scan: reader.Scan) -> Targets:
    found = Targets([])
    for number, (point, label) in enumerate(self.points):
      voxel = scan.geometry.world_to_voxel(point)
      if target_cubes.holds(scan.geometry, voxel):
        box = self.cube.box_around(scan.geometry, voxel)
        found.cubes.append(Target(number, box, label, point))
      else:
        found.rejected.append((OUTSIDE, describe_point(point, voxel)))
    return found


@dataclasses.dataclass(frozen=True)
class AroundNodules:
  """Cubes and masks around nodules, and some without a nodule.

  Attributes:
    scan_id: of the scan.
    nodules: centre in world mm (LPS) and diameter in mm.
    cube: size of the cubes.
    mask_path: the mask of all nodules; None draws balls.
    jitter_mm: the middle of a cube is moved by up to so much along each axis.
    without_nodule: cubes without a nodule for each with one.
    lungs_path: the lung mask in which those lie; None takes the whole scan.
    seed: decides what is random.
  """

  scan_id: str
  nodules: tuple[tuple[Point, float], ...]
  cube: target_cubes.CubeSize
  mask_path: str | None = None
  jitter_mm: float = 0.0
  without_nodule: float = 0.0
  lungs_path: str | None = None
  seed: int = 0

  @property
  def most_cubes(self) -> int:
    return len(self.nodules) + round(self.without_nodule * len(self.nodules))

  def find(self, scan: reader.Scan) -> Targets:
    """Raises reader.ScanError when the mask of nodules cannot be used."""
    found = self._begin(scan)
    rng = _make_rng(self.seed, self.scan_id)
    for number, (point, _) in enumerate(self.nodules):
      # Drawn for each: others must not change with one that is left out.
      shift = rng.uniform(-1.0, 1.0, 3) * self.jitter_mm
      voxel = scan.geometry.world_to_voxel(point)
      box = self.cube.box_around(
        scan.geometry, voxel + shift / scan.geometry.spacing
      )
      if not target_cubes.holds(scan.geometry, voxel):
        found.rejected.append((OUTSIDE, describe_point(point, voxel)))
      elif not found.touches(box):
        found.rejected.append((NOT_IN_MASK, describe_point(point, voxel)))
      else:
        _add_if_marked(found, Target(number, box))
    wanted = round(self.without_nodule * len(found.cubes))
    if wanted:
      try:
        self._add_free_places(found, scan, rng, wanted)
      except reader.ScanError as error:
        # Of the lung mask: the nodules are as good without.
        found.rejected.append((error.reason, error.detail))
    return found

  def _begin(self, scan) -> Targets:
    if self.mask_path:
      mask = masks.read_mask(self.mask_path, scan.geometry)
      return _begin_with_mask(mask, self.cube)
    centres = np.array([point for point, _ in self.nodules]).reshape(-1, 3)
    diameters = np.array([diameter for _, diameter in self.nodules])

    def cut_mask(box):
      return target_cubes.ball_mask(
        scan.geometry, box, self.cube.shape, centres, diameters
      )

    return Targets([], cut_mask, lambda box: cut_mask(box).any())

  def _add_free_places(self, found, scan, rng, wanted):
    lungs = None
    if self.lungs_path:
      lungs = masks.read_mask(self.lungs_path, scan.geometry, masks.LUNGS)
    _add_free_places(
      found, scan, self.cube, rng, wanted, len(self.nodules), lungs
    )


@dataclasses.dataclass(frozen=True)
class InMask:
  """Cubes at random places of a mask, and some without a part of it.

  Attributes:
    scan_id: of the scan.
    mask_path: the mask, in the geometry of the scan.
    cube: size of the cubes.
    cubes: number of cubes whose middle is a voxel of the mask; jitter moves
      it.
    without: number of cubes without any voxel of it.
    values: that count as the mask; None takes all above 0.
    jitter_mm: the middle of a cube is moved by up to so much along each axis.
    seed: decides what is random.
  """

  scan_id: str
  mask_path: str
  cube: target_cubes.CubeSize
  cubes: int
  without: int = 0
  values: tuple[int, ...] | None = None
  jitter_mm: float = 0.0
  seed: int = 0

  @property
  def most_cubes(self) -> int:
    return self.cubes + self.without

  def find(self, scan: reader.Scan) -> Targets:
    """Raises reader.ScanError when the mask cannot be used, or is empty."""
    mask = masks.read_mask(self.mask_path, scan.geometry, self.values)
    found = _begin_with_mask(mask, self.cube)
    rng = _make_rng(self.seed, self.scan_id)
    voxels = masks.draw_voxels(mask, self.cubes, rng, self.mask_path)
    for number, voxel in enumerate(voxels):
      shift = rng.uniform(-1.0, 1.0, 3) * self.jitter_mm
      box = self.cube.box_around(
        scan.geometry, voxel + shift / scan.geometry.spacing
      )
      _add_if_marked(found, Target(number, box))
    if self.without:
      _add_free_places(found, scan, self.cube, rng, self.without, self.cubes)
    return found


@dataclasses.dataclass(frozen=True)
class WholeScan:
  """The whole scan as one cube, with a label or a mask.

  Attributes:
    cube: its shape; `extent_mm` has no meaning.
    label: number of its class.
    mask_path: the mask, all above 0, in the geometry of the scan; or None.
  """

  cube: target_cubes.CubeSize
  label: int = 0
  mask_path: str | None = None

  @property
  def most_cubes(self) -> int:
    return 1

  def find(self, scan: reader.Scan) -> Targets:
    """Raises reader.ScanError when the mask cannot be used."""
    target = Target(
      0, target_cubes.Box((0, 0, 0), scan.geometry.size), self.label
    )
    if self.mask_path is None:
      return Targets([target])
    mask = masks.read_mask(self.mask_path, scan.geometry)
    found = _begin_with_mask(mask, self.cube)
    _add_if_marked(found, target)
    return found


def describe_point(point: Sequence[float], voxel) -> str:
  """Returns a place as text, without commas: it is written to a csv file."""
  mm = ' '.join(f'{one:.2f}' for one in point)
  voxels = ' '.join(f'{one:.1f}' for one in voxel)
  return f'place {mm} mm is voxel {voxels}'


def _make_rng(seed: int, scan_id: str) -> np.random.Generator:
  return np.random.default_rng([seed, schema.stable_hash(scan_id)])


def _begin_with_mask(mask, cube) -> Targets:
  """Returns targets without cubes, whose mask is that of the scan."""
  return Targets(
    [],
    lambda box: target_cubes.cut_mask(mask, box, cube.shape),
    lambda box: target_cubes.touches(mask, box),
  )


def _add_if_marked(found, target) -> None:
  """Adds a cube, unless the mask that lies in it is lost in the cube's own.

  As background it would be learnt wrong.
  """
  if found.touches(target.box) and not found.cut_mask(target.box).any():
    corner = ' '.join(map(str, target.box.origin))
    detail = f'box at voxel {corner}: no voxel of the cube falls on the mask'
    found.rejected.append((MASK_TOO_FINE, detail))
  else:
    found.cubes.append(target)


def _add_free_places(found, scan, cube, rng, wanted, number, inside=None):
  """Adds cubes without a part of the mask, at random places.

  Their middles lie in the mask `inside`, or else so that the box lies in the
  scan where it can.
  """
  size = np.array(scan.geometry.size)
  half = np.array(cube.box_around(scan.geometry, size / 2).size) / 2
  low = np.minimum(half, size / 2) - 0.5
  high = np.maximum(size - half, size / 2) - 0.5
  tries = _TRIES * wanted
  if inside is None:
    voxels = rng.uniform(low, high, (tries, 3))
  else:
    voxels = masks.draw_voxels(inside, tries, rng, 'the lung mask')
  for voxel in voxels:
    box = cube.box_around(scan.geometry, voxel)
    if not found.touches(box):
      found.cubes.append(Target(number, box))
      number, wanted = number + 1, wanted - 1
      if not wanted:
        return
  found.rejected.append(
    (NO_FREE_PLACE, f'{wanted} cubes without a part of the mask')
  )
