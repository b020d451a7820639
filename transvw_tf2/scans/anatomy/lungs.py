"""Draws the template's lungs: tissue, fissures, vessels and bronchi."""

import numpy as np

from transvw_tf2.scans.anatomy import branching
from transvw_tf2.scans.anatomy import canvas as canvas_lib
from transvw_tf2.scans.anatomy import chest_wall
from transvw_tf2.scans.anatomy import mediastinum

# Places that a tree of vessels reaches in each lung.
_TWIGS = 1800

# Where the trees of each lung begin, template mm.
_HILUM = {
  1: {
    'artery': np.array([46.0, 18.0, 10.0]),
    'upper vein': np.array([46.0, -1.0, -8.0]),
    'lower vein': np.array([44.0, 24.0, -30.0]),
  },
  -1: {
    'artery': np.array([-42.0, 10.0, 5.0]),
    'upper vein': np.array([-36.0, 5.0, -10.0]),
    'lower vein': np.array([-36.0, 22.0, -30.0]),
  },
}


def levels(canvas: canvas_lib.Canvas, wall: chest_wall.Wall, dome) -> dict:
  """Returns mm inside the left (1) and right (-1) lung, float32 [z, y, x].

  Args:
    canvas: what will be drawn on.
    wall: the outlines of the chest.
    dome: z of the diaphragm, mm (1, y, x).
  """
  organs = mediastinum.occupied(canvas)
  x, y, z = canvas.whole.x, canvas.whole.y, canvas.whole.z
  middle = chest_wall.spine_middle(z)
  spine = 27.0 - np.hypot(x, y - middle - 8.0)
  # The mediastinum leans to the left in front and to the right above.
  lean = x - 5.0 * np.sin((y + 10.0) / -45.0) + 4.0 * np.sin(z / 40.0)
  found = {}
  for side in (1, -1):
    # In front the lungs almost touch, above them the mediastinum is wide.
    gap = 7.0 + 10.0 * np.clip((z - 70.0) / 50.0, 0.0, 1.0)
    gap = gap + 5.0 * np.clip((-60.0 - y) / 30.0, 0.0, 1.0)
    lung = wall.cage - 2.0
    # In place: the arrays are large.
    for limit in (side * lean - gap, (z - dome) * 0.75, -organs, -spine):
      np.minimum(lung, limit, out=lung)
    found[side] = lung
  return found


def draw(canvas: canvas_lib.Canvas, lung, side: int, grain, fine) -> None:
  """Draws a lung.

  Args:
    canvas: what to draw on.
    lung: its level, mm.
    side: 1 left, -1 right.
    grain: smooth unit noise over the canvas, patches of denser tissue.
    fine: finer unit noise.
  """
  region = canvas.where(lung > -canvas.spacing)
  inside = lung[region.index]
  # Lying on the back, the tissue is denser behind.
  tissue = -848.0 + 0.32 * region.y
  tissue += 12.0 * grain[region.index] + 14.0 * fine[region.index]
  canvas.paint(inside, tissue, region)
  for level in _lobes(region, side):
    line = np.minimum(0.5 - np.abs(level), inside - 1.0)
    canvas.paint(line, -640.0, region)
  rng = np.random.default_rng([40, side + 1])
  clouds = _lobe_clouds(canvas, lung, side, rng)
  hilum = _HILUM[side]
  trunk = sum(len(cloud) for cloud in clouds)
  for cloud in clouds:
    share = (len(cloud) / trunk) ** (1 / 3)
    arteries = branching.grow(cloud, hilum['artery'], 7.4 * share)
    _draw_branches(canvas, lung, arteries)
    moved = cloud + rng.normal(scale=5.0, size=cloud.shape)
    upper = cloud[:, 2].mean() > -20.0
    start = hilum['upper vein' if upper else 'lower vein']
    _draw_branches(canvas, lung, branching.grow(moved, start, 6.6 * share))
    for one in arteries:
      if one.radius > 1.5:
        _draw_bronchus(canvas, lung, one)


def _lobes(region, side):
  """Returns the levels of the fissures, mm; positive above each."""
  back = region.y - 10.0
  oblique = region.z - 8.0 + 0.95 * back + 0.0015 * back**2
  oblique = oblique * 0.7 - 0.06 * (np.abs(region.x) - 70.0)
  if side > 0:
    return [oblique]
  minor = region.z + 12.0 + 0.08 * (region.y + 30.0)
  minor = minor + 0.05 * (np.abs(region.x) - 60.0)
  return [oblique, np.where(oblique > 0.5, minor, -99.0)]


def _lobe_clouds(canvas, lung, side, rng):
  """Draws places for the twigs, one array (n, 3) in mm per lobe."""
  inside = np.argwhere(lung > 4.0)
  chosen = inside[rng.choice(len(inside), _TWIGS, replace=False)]
  region = canvas_lib.Region(
    None, *(chosen[:, ::-1] * canvas.spacing - canvas.half).T
  )
  above = [level > 0 for level in _lobes(region, side)]
  places = np.stack([region.x, region.y, region.z], axis=1)
  places += rng.uniform(-0.5, 0.5, places.shape) * canvas.spacing
  number = np.sum(above, axis=0)
  return [places[number == one] for one in range(number.max() + 1)]


def _draw_branches(canvas, lung, branches):
  for one in branches:
    radii = np.array([min(one.parent_radius, one.radius * 1.25), one.radius])
    tube = canvas_lib.Tube(np.stack([one.start, one.end]), radii)
    for region, level in tube.levels(canvas, margin=canvas.spacing):
      # Vessels end below the pleura, so the surface stays whole.
      level = np.minimum(level, lung[region.index] + 4.0)
      canvas.paint(level, mediastinum.BLOOD_HU, region, only_raise=True)


def _draw_bronchus(canvas, lung, artery):
  """Draws the airway that runs beside an artery."""
  aside = np.array([0.0, 0.6, -0.8])
  ends = [
    artery.start + aside * 1.9 * artery.parent_radius,
    artery.end + aside * 1.9 * artery.radius,
  ]
  radii = np.array([artery.parent_radius, artery.radius]) * 0.62
  wall = canvas_lib.Tube(np.stack(ends), radii + 1.0)
  for region, level in wall.levels(canvas, margin=canvas.spacing):
    level = np.minimum(level, lung[region.index] - 4.0)
    canvas.paint(level, -60.0, region)
  lumen = canvas_lib.Tube(np.stack(ends), radii)
  for region, level in lumen.levels(canvas, margin=canvas.spacing):
    level = np.minimum(level, lung[region.index] - 5.0)
    canvas.paint(level, -970.0, region)
