"""Draws the template's upper abdomen: diaphragm, liver, spleen and stomach."""

import numpy as np

from transvw_tf2.scans.anatomy import branching
from transvw_tf2.scans.anatomy import canvas as canvas_lib
from transvw_tf2.scans.anatomy import chest_wall

# Above the highest place of the diaphragm, mm.
_TOP = -50.0


def diaphragm(x, y):
  """Returns z of the diaphragm, float32 mm."""
  right = _dome(-64.0, 76.0, ((x + 68) / 74) ** 2 + ((y + 6) / 92) ** 2)
  left = _dome(-78.0, 64.0, ((x - 72) / 68) ** 2 + ((y + 2) / 90) ** 2)
  middle = _dome(-90.0, 80.0, ((x / 80) ** 2 + ((y + 20) / 80) ** 2) / 2)
  heights = np.stack(np.broadcast_arrays(right, left, middle))
  # A maximum with rounded edges.
  return 7.0 * np.log(np.exp(np.maximum(heights, -600.0) / 7.0).sum(0))


def draw(canvas: canvas_lib.Canvas, wall: chest_wall.Wall, dome, grain) -> None:
  """Draws what lies below the diaphragm.

  Args:
    canvas: what to draw on.
    wall: the outlines of the chest.
    dome: z of the diaphragm, mm (1, y, x).
    grain: smooth unit noise over the canvas.
  """
  # The box starts where the canvas does, so the index of a smaller box fits.
  lower = canvas.region(-canvas.half, (*canvas.half[:2], _TOP))
  x, y, z = lower.x, lower.y, lower.z
  cage, grain = wall.cage[lower.index], grain[lower.index]
  below = (dome - z) * 0.75
  inside = np.minimum(cage - 1.0, below)
  canvas.paint(np.minimum(inside, 3.5 - below), 50.0, lower)
  canvas.paint(np.minimum(inside, 3.5 - cage), 50.0, lower)
  room = np.minimum(cage - 4.0, below - 4.5)
  edge = 34.0 - x - 0.35 * (z + 110.0) - 0.3 * y
  liver = np.minimum(room, edge * 0.8)
  spine = np.hypot(x, y - chest_wall.spine_middle(z)) - 30.0
  liver = np.minimum(liver, spine)
  canvas.paint(liver, 57.0 + 3.0 * grain, lower)
  rng = np.random.default_rng(31)
  cloud = rng.uniform((-115, -60, -190), (10, 60, -85), (160, 3))
  for one in branching.grow(cloud, np.array([-22.0, 8.0, -100.0]), 6.0):
    vein = canvas_lib.Tube(np.stack([one.start, one.end]), one.radius)
    for region, level in vein.levels(canvas, margin=canvas.spacing):
      level = np.minimum(level, liver[region.index] - 3.0)
      canvas.paint(level, 38.0, region)
  spleen = canvas_lib.Ellipsoid((92, 34, -122), (32, 44, 42))
  for region, level in spleen.levels(canvas, margin=2.0):
    level = np.minimum(level, room[region.index])
    canvas.paint(level, 48.0, region)
  stomach = canvas_lib.Ellipsoid((62, -18, -132), (44, 42, 46))
  for region, level in stomach.levels(canvas, margin=2.0):
    level = np.minimum(level, room[region.index] - 2.0)
    canvas.paint(level, 40.0, region)
    # Lying on the back, the gas is in front.
    gas = np.minimum(level - 4.0, -26.0 - region.y)
    canvas.paint(level - 4.0, 12.0, region)
    canvas.paint(gas, -980.0, region)


def _dome(top, fall, squared):
  """Falls from the top, steeply at 1, to the bottom of the recess around."""
  return top - fall * np.tanh(squared)
