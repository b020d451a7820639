"""Draws the wall of the template's chest: skin, fat, muscle and bones.

The wall is built around the cage, the surface that the ribs lie on and that
encloses lungs, mediastinum and upper abdomen. Levels are mm, positive inside.
"""

import dataclasses

import numpy as np
from scipy import interpolate

from transvw_tf2.scans.anatomy import canvas as canvas_lib

# Rows of z, half width, half depth and middle y of the outlines, mm.
_BODY = np.array(
  [
    (-200.0, 160.0, 110.0, 2.0),
    (-100.0, 163.0, 113.0, 1.0),
    (-40.0, 164.0, 114.0, 1.0),
    (20.0, 163.0, 112.0, 2.0),
    (70.0, 166.0, 105.0, 6.0),
    (105.0, 163.0, 92.0, 14.0),
    (135.0, 138.0, 76.0, 20.0),
    (158.0, 92.0, 64.0, 22.0),
    (178.0, 66.0, 59.0, 20.0),
    (200.0, 60.0, 58.0, 18.0),
  ]
)
_CAGE = np.array(
  [
    (-200.0, 130.0, 84.0, 4.0),
    (-140.0, 133.0, 90.0, 2.0),
    (-100.0, 134.0, 93.0, 0.0),
    (-60.0, 133.0, 94.0, -2.0),
    (-20.0, 129.0, 91.0, -1.0),
    (20.0, 121.0, 85.0, 3.0),
    (60.0, 106.0, 74.0, 9.0),
    (90.0, 88.0, 60.0, 15.0),
    (110.0, 71.0, 47.0, 20.0),
    (122.0, 56.0, 35.0, 23.0),
    (130.0, 36.0, 20.0, 25.0),
    (134.0, 6.0, 4.0, 26.0),
  ]
)

# The first thoracic vertebra's z, its height, and the growth of the height
# towards the feet.
_FIRST_VERTEBRA = 128.0
_FIRST_HEIGHT = 20.0
_GROWTH = 0.028

# The front end of a rib lies lower than its head by _RIB_DROP mm, less
# _RIB_DROP_SLOPE for each mm that the head lies higher.
_RIB_DROP = 74.0
_RIB_DROP_SLOPE = 0.3


# Muscles of neck and shoulder on one side: points and radii, mm.
_MUSCLES = (
  # Sternocleidomastoid, scalene, trapezius with the muscles of the nape.
  (((34, 0, 210), (28, -22, 140), (16, -42, 92)), (9, 9, 6)),
  (((27, 22, 210), (27, 24, 150), (38, 20, 128)), (11, 12, 10)),
  (((22, 52, 210), (26, 62, 160), (40, 74, 120)), (17, 18, 15)),
  (((50, 50, 158), (84, 44, 138), (118, 34, 128)), (10, 13, 12)),
  # Around the shoulder's joint.
  (((138, -22, 84), (142, 8, 96), (132, 40, 92)), (18, 24, 18)),
)


@dataclasses.dataclass(frozen=True)
class Wall:
  """Levels of the outlines, float32 [z, y, x].

  Attributes:
    body: mm below the skin.
    cage: mm inside the surface that the ribs lie on.
    front: 0 at the back, 0.5 at the side and 1 at the front of the cage.
  """

  body: np.ndarray
  cage: np.ndarray
  front: np.ndarray


def make_wall(whole: canvas_lib.Region) -> Wall:
  """Computes the outlines on a region."""
  cage, front = _outline(_CAGE, whole, exponent=2.3)
  # Below the top row there is nothing to enclose.
  cage = np.where(whole.z < _CAGE[-1, 0], cage, np.minimum(cage, -6.0))
  return Wall(_outline(_BODY, whole, exponent=2.4)[0], cage, front)


def spine_middle(z):
  """Returns y of the middle of the vertebral bodies at z, mm."""
  return 54.0 - 0.0007 * (np.asarray(z) - 10.0) ** 2


def vertebra_number(z):
  """Returns the thoracic vertebra at z, whole at its middle: T1 is 1.0."""
  below = np.maximum(_FIRST_VERTEBRA - np.asarray(z), -600.0)
  return 1.0 + np.log1p(_GROWTH / _FIRST_HEIGHT * below) / _GROWTH


def vertebra_height(z):
  """Returns the height of a vertebra and its disc at z, mm."""
  return _FIRST_HEIGHT + _GROWTH * (_FIRST_VERTEBRA - np.asarray(z))


def draw_soft_tissue(canvas: canvas_lib.Canvas, wall: Wall, grain) -> None:
  """Draws skin, fat and the muscles of the wall.

  Args:
    canvas: what to draw on.
    wall: the outlines.
    grain: smooth unit noise over the canvas, mottles fat and muscle.
  """
  region = canvas.where((wall.body > -2.0) & (wall.cage < 3.0))
  z, grain = region.z, grain[region.index]
  body, front = wall.body[region.index], wall.front[region.index]
  out = -wall.cage[region.index]
  canvas.paint(body, 30.0, region)
  canvas.paint(body - 2.0, -102.0 + 6.0 * grain, region)
  # Thick at the back beside the spine, around the shoulder blade and, above
  # the breast bone's lower end, at the front (pectoral muscles).
  back = np.exp(-((front / 0.12) ** 2))
  blade = np.exp(-(((front - 0.3) / 0.16) ** 2)) * _step(z, 10.0, 40.0)
  chest = np.exp(-(((front - 0.85) / 0.1) ** 2)) * _step(z, 0.0, 35.0)
  thick = 19.0 + 22.0 * back + 22.0 * blade + 9.0 * chest
  fat = 7.0 + 7.0 * front
  muscle = np.minimum(thick - out, body - fat)
  canvas.paint(muscle, 52.0 + 6.0 * grain, region)
  # The fat between the layers of muscle.
  for depth, thickness in ((13.0, 1.2), (29.0, 1.6)):
    plane = np.minimum(thickness - np.abs(out - depth), muscle - 2.0)
    canvas.paint(plane, -70.0, region)
  for points, radius in _MUSCLES:
    for side in (-1, 1):
      tube = canvas_lib.smooth_tube(np.array(points) * (side, 1, 1), radius)
      canvas.draw(tube, 54.0)


def draw_ribs(canvas: canvas_lib.Canvas, wall: Wall) -> None:
  """Draws the twelve ribs with their cartilage."""
  region = canvas.where(np.abs(wall.cage + 6.5) < 6.0)
  front = wall.front[region.index]
  head = (region.z + _RIB_DROP * front) / (1 + _RIB_DROP_SLOPE * front)
  number = vertebra_number(head) + 0.35
  rib = np.rint(number)
  along = (number - rib) * vertebra_height(head)
  across = wall.cage[region.index] + 6.5
  level = 4.0 - np.hypot(along * (4.0 / 6.6), across)
  # Ribs 1 to 7 reach the breast bone, 8 to 10 end at the front, 11 and 12 at
  # the side. One unit of `front` is about 350 mm along a rib.
  bone_end = np.select([rib < 8, rib < 11], [0.86, 0.72], 0.34)
  end = np.select([rib < 8, rib < 11], [1.1, 0.8], 0.36)
  level = np.where((rib >= 1) & (rib <= 12), level, -9.0)
  level = np.minimum(level, (end - front) * 350.0)
  # Each rib has a head of its own beside the spine.
  level = np.minimum(level, (front - 0.004) * 350.0)
  canvas.paint(level, 95.0, region)
  bone = np.minimum(level, (bone_end - front) * 350.0)
  canvas.paint(bone, 560.0, region)
  canvas.paint(bone - 1.7, 240.0, region)


def draw_breast_bone(canvas: canvas_lib.Canvas) -> None:
  """Draws manubrium, body and tip of the sternum and the collar bones."""
  region = canvas.region((-40, -140, -95), (40, -20, 90))
  _, depth, middle = _rows(_CAGE, region.z)
  surface = middle - depth
  width = np.interp(
    region.z,
    (-90, -82, -70, 0, 36, 44, 60, 74, 80),
    (1, 5, 16, 19, 13, 17, 29, 27, 14),
  ).astype(np.float32)
  ratio = (region.x / width) ** 4 + ((region.y - surface + 9.0) / 6.0) ** 4
  level = 6.0 * (1.0 - np.sqrt(np.sqrt(ratio)))
  level = np.minimum(level, 4.0 - np.abs(region.z + 6.0) + 82.0)
  level = np.minimum(level, np.abs(region.z - 40.0) - 1.5)
  canvas.paint(level, 430.0, region)
  canvas.paint(level - 1.8, 190.0, region)
  for side in (-1, 1):
    bone = [
      (side * 20.0, -48.0, 84.0),
      (side * 62.0, -46.0, 104.0),
      (side * 105.0, -14.0, 120.0),
      (side * 138.0, 12.0, 122.0),
    ]
    _draw_bone(canvas, bone, (9.0, 6.5, 6.0, 7.0))


def draw_shoulders(canvas: canvas_lib.Canvas, wall: Wall) -> None:
  """Draws shoulder blades with their ridges and the heads of the arms."""
  # A triangle on a surface around the ribs: the tip below, the socket outside.
  region = canvas.where((np.abs(wall.cage + 22.0) < 7.0) & (wall.front < 0.46))
  z, front = region.z, wall.front[region.index]
  depth = -wall.cage[region.index] - 21.0 - 6.0 * (front - 0.2)
  inner = (front - 0.075 - 0.0003 * np.abs(z - 60.0)) * 300.0
  outer = (np.minimum(0.2 + 0.0026 * z, 0.44) - front) * 300.0
  blade = np.minimum(2.6 - np.abs(depth), np.minimum(inner, outer))
  blade = np.minimum(blade, 58.0 - np.abs(z - 50.0))
  canvas.paint(blade, 520.0, region)
  canvas.paint(blade - 1.8, 280.0, region)
  for side in (-1, 1):
    ridge = [
      (side * 62.0, 86.0, 74.0),
      (side * 100.0, 74.0, 92.0),
      (side * 142.0, 34.0, 118.0),
    ]
    _draw_bone(canvas, ridge, (3.5, 5.0, 7.0))
    arm = canvas_lib.Ellipsoid((side * 142.0, 8.0, 96.0), (16.0, 20.0, 17.0))
    canvas.draw(arm, 500.0)
    inner = canvas_lib.Ellipsoid((side * 142.0, 8.0, 96.0), (14.0, 18.0, 15.0))
    canvas.draw(inner, 230.0)


def draw_spine(canvas: canvas_lib.Canvas) -> None:
  """Draws vertebrae, discs, the spinal canal and the processes."""
  high = canvas.half[2]
  region = canvas.region((-48, 10, -high), (48, 125, high))
  x, y, z = region.x, region.y, region.z
  middle = spine_middle(z)
  number = vertebra_number(z)
  # mm above the middle of the nearest vertebra.
  above = (np.rint(number) - number) * vertebra_height(z)
  half_height = vertebra_height(z) / 2 - 2.6
  size = 1.0 + 0.07 * (number - 6.0) / 3.0
  waist = 1.0 - 0.09 * np.cos(np.pi * above / (half_height + 2.6))
  ratio = np.sqrt(
    (x / (17.0 * size * waist)) ** 2
    + ((y - middle) / (14.0 * size * waist)) ** 2
  )
  body = (1.0 - ratio) * 15.0 * size
  canvas.paint(body, 85.0, region)
  bone = np.minimum(body, half_height - np.abs(above))
  canvas.paint(bone, 420.0, region)
  canvas.paint(bone - 1.8, 195.0, region)
  canal = middle + 14.0 * size + 8.5
  from_canal = np.hypot(x, y - canal)
  # Arch: a ring around the canal at the upper half of each vertebra.
  arch = np.minimum(from_canal - 8.0, 12.5 - from_canal)
  arch = np.minimum(arch, 8.5 - np.abs(above - 2.0))
  # Spinous process: a plate that slants down as it goes back.
  back = y - canal - 9.0
  spinous = np.minimum(3.2 - np.abs(x), np.minimum(back, 24.0 - back))
  spinous = np.minimum(spinous, 5.5 - np.abs(_lowered(z, back, 0.5)))
  # Transverse processes: rods that go outward and back.
  outward = np.abs(x) - 12.0
  rod = np.hypot(y - canal - 4.0 - 0.45 * outward, above - 3.0)
  transverse = np.minimum(5.0 - rod, np.minimum(outward, 24.0 - outward))
  processes = np.maximum(np.maximum(arch, spinous), transverse)
  canvas.paint(processes, 480.0, region)
  canvas.paint(processes - 1.9, 260.0, region)
  inside = np.broadcast_to(8.0 - from_canal, (len(z), *from_canal.shape[1:]))
  canvas.paint(inside, 15.0, region)
  canvas.paint(inside - 3.2, 36.0, region)


def _lowered(z, back, slope):
  """Returns mm above a vertebra's middle on a plane that sinks backwards."""
  raised = z + slope * back
  number = vertebra_number(raised)
  return (np.rint(number) - number) * vertebra_height(raised) + 2.0


def _draw_bone(canvas, points, radii):
  canvas.draw(canvas_lib.smooth_tube(points, radii), 500.0)
  radii = np.asarray(radii) - 2.0
  canvas.draw(canvas_lib.smooth_tube(points, radii), 230.0)


def _outline(rows, region, exponent):
  """Returns the level of an outline and 0 at its back to 1 at its front."""
  width, depth, middle = _rows(rows, region.z)
  offset = region.y - middle
  ratio = (
    np.abs(region.x / width) ** exponent + np.abs(offset / depth) ** exponent
  ) ** np.float32(1 / exponent)
  distance = np.hypot(region.x, offset)
  level = canvas_lib.radial_level(ratio, region.x, offset)
  front = 0.5 - 0.5 * offset / np.maximum(distance, 1e-3)
  return level, front


def _rows(rows, z):
  """Returns half width, half depth and middle y of an outline at z."""
  inside = np.clip(z, rows[0, 0], rows[-1, 0])
  return (
    interpolate.PchipInterpolator(rows[:, 0], rows[:, column])(inside).astype(
      np.float32
    )
    for column in (1, 2, 3)
  )


def _step(values, low, high):
  """Rises smoothly from 0 at `low` to 1 at `high`."""
  share = np.clip((values - low) / (high - low), 0.0, 1.0)
  return share * share * (3.0 - 2.0 * share)
