"""Nodules, each synthetic patient's own."""

import dataclasses

import numpy as np
from scipy import ndimage

from transvw_tf2.scans import bend as bend_lib
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans.anatomy import canvas

# mm of lung around every nodule.
_MARGIN = 3.0
# Places that are tried as centres of nodules.
_TRIES = 3000
_KINDS = ('solitary', 'juxtapleural', 'juxtavascular')
# Of a juxtapleural nodule's surface, how much lies beyond the pleura.
_BEYOND_PLEURA = (0.05, 0.4)


@dataclasses.dataclass(frozen=True, eq=False)
class Lungs:
  """The lungs of the original that patients are bent from.

  Attributes:
    mask: uint8 [x, y, z], 3 left and 4 right lung, as in LUNA16's masks.
    geometry: where its voxels lie, mm of the original.
    vessels: float64 (n, 3) mm, places in vessels deep in the lungs.
    box: float64 (2, 3) mm, the middle of a box around the lungs and half its
      sides.
  """

  mask: np.ndarray
  geometry: geometry_lib.Geometry
  vessels: np.ndarray
  box: np.ndarray


@dataclasses.dataclass(frozen=True)
class Nodule:
  """A nodule: an ellipsoid along the world's axes.

  Attributes:
    centre: (x, y, z) world mm.
    radii: along x, y and z, mm.
    hu: of its tissue.
  """

  centre: tuple[float, float, float]
  radii: tuple[float, float, float]
  hu: float

  @property
  def diameter(self) -> float:
    """Diameter of the sphere of the same volume, mm."""
    return 2.0 * float(np.prod(self.radii)) ** (1 / 3)

  def level(self, points) -> np.ndarray:
    """Returns mm below the surface at world mm (..., 3), negative outside."""
    offsets = np.asarray(points, np.float64) - self.centre
    ratio = np.sqrt(((offsets / self.radii) ** 2).sum(-1))
    return canvas.radial_level(ratio, *np.moveaxis(offsets, -1, 0))


def draw(
  rng: np.random.Generator,
  truth: bend_lib.Truth,
  lungs: Lungs,
  number: tuple[int, int],
  diameter: tuple[float, float],
  attached: float = 0.0,
) -> tuple[Nodule, ...]:
  """Draws nodules that lie in the lungs, in the scan and apart.

  Args:
    rng: where the random numbers come from.
    truth: of the scan.
    lungs: that they lie in.
    number: lowest and highest number; fewer where the lungs in the scan do not
      hold as many.
    diameter: lowest and highest, mm; small ones are more frequent. Each radius
      then varies by 15 %.
    attached: share that touches the pleura or a vessel, half of them each.
  """

  def in_lung(points):
    index = lungs.geometry.world_to_voxel(truth.bend.apply(points))
    return ndimage.map_coordinates(lungs.mask, index.T, order=0) > 0

  def fits(kind, centre, radius):
    """Returns whether a nodule lies in the lungs as one of its kind does."""
    if kind == 'solitary':
      radius += _MARGIN
    surface = centre + sphere * radius
    if not truth.in_scan(surface).all():
      return False
    beyond = 1.0 - in_lung(surface).mean()
    if kind != 'juxtapleural':
      return beyond == 0
    return _BEYOND_PLEURA[0] <= beyond <= _BEYOND_PLEURA[1]

  wanted = int(rng.integers(number[0], number[1] + 1))
  middle, half = lungs.box
  places = rng.uniform(-1.0, 1.0, (_TRIES, 3)) * half + middle
  centres = truth.bend.invert(places)
  sphere = rng.normal(size=(60, 3))
  sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
  kinds = ['solitary'] * wanted
  if attached:
    shares = [1.0 - attached, attached / 2, attached / 2]
    kinds = list(rng.choice(_KINDS, wanted, p=shares))
    vessels = truth.bend.invert(rng.choice(lungs.vessels, _TRIES))
  found = []
  for place in np.flatnonzero(in_lung(centres) & truth.in_scan(centres)):
    if len(found) == wanted:
      break
    radius = np.exp(rng.uniform(*np.log(diameter))) / 2
    radii = radius * rng.uniform(0.85, 1.15, size=3)
    hu = rng.uniform(-40.0, 80.0)
    kind, centre = kinds[len(found)], centres[place]
    if kind == 'juxtavascular':
      centre = vessels[place] + radius * sphere[place % len(sphere)]
    reach = radii.max() + _MARGIN
    apart = all(
      np.linalg.norm(centre - other.centre) > reach + max(other.radii)
      for other in found
    )
    if apart and fits(kind, centre, radii.max()):
      found.append(
        Nodule(tuple(centre.tolist()), tuple(radii.tolist()), float(hu))
      )
  return tuple(found)


def add(
  values: np.ndarray,
  slab: slice,
  geometry: geometry_lib.Geometry,
  nodule: Nodule,
) -> None:
  """Adds a nodule to some slices, in place.

  Args:
    values: float32 [z, y, x] HU of the slices.
    slab: which slices of the scan they are.
    geometry: of the whole scan, along the world's axes.
    nodule: what is added.
  """
  reach = np.array(nodule.radii) + 2 * max(geometry.spacing)
  corners = [np.subtract(nodule.centre, reach), np.add(nodule.centre, reach)]
  low, high = geometry.world_to_voxel(corners)
  low = np.maximum(np.floor(low), (0, 0, slab.start)).astype(int)
  high = np.minimum(np.ceil(high) + 1, (*geometry.size[:2], slab.stop))
  high = high.astype(int)
  if (high <= low).any():
    return
  axes = [np.arange(*ends) for ends in zip(low, high, strict=True)]
  z, y, x = np.meshgrid(*axes[::-1], indexing='ij')
  points = geometry.voxel_to_world(np.stack([x, y, z], axis=-1))
  # An edge as wide as a voxel.
  edge = float(np.mean(geometry.spacing))
  share = np.clip(nodule.level(points) / edge + 0.5, 0.0, 1.0)
  box = (
    slice(low[2] - slab.start, high[2] - slab.start),
    slice(low[1], high[1]),
    slice(low[0], high[0]),
  )
  values[box] += share * (nodule.hu - values[box])
