"""Draws the template's mediastinum: heart, vessels, oesophagus and airways."""

import numpy as np

from transvw_tf2.scans.anatomy import canvas as canvas_lib

BLOOD_HU = 44.0

_WALL_HU = 48.0

# Tubes are (points, radii) in template mm: x left, y posterior, z superior.
_AORTA = (
  [
    (4, -18, -18),
    (-10, -26, 10),
    (-14, -24, 38),
    (-6, -10, 60),
    (10, 12, 66),
    (23, 32, 52),
    (25, 40, 20),
    (25, 40, -40),
    (18, 38, -100),
    (6, 30, -150),
    (3, 26, -210),
  ],
  [14, 16, 16, 14, 13.5, 13, 12.5, 12, 11.5, 11, 10],
)
_PULMONARY_TRUNK = (
  [(18, -46, -10), (22, -38, 12), (24, -18, 24), (34, 4, 22), (48, 18, 10)],
  [14, 14, 13, 11.5, 9.5],
)
_RIGHT_PULMONARY_ARTERY = (
  [(22, -24, 22), (2, -6, 16), (-20, 2, 12), (-44, 10, 4)],
  [12, 10.5, 10, 8.5],
)
_VEINS = [
  # Upper caval vein with the brachiocephalic veins, then the lower one.
  (
    [(-22, 0, 150), (-24, -10, 100), (-27, -18, 60), (-27, -14, 5)],
    [7, 8, 9.5, 10],
  ),
  (
    [(42, 0, 140), (30, -22, 88), (2, -34, 78), (-26, -18, 62)],
    [6, 6.5, 6.5, 7],
  ),
  (
    [(-22, -6, -60), (-24, 2, -95), (-22, 12, -140), (-18, 18, -210)],
    [11, 12, 11, 11],
  ),
  # The four pulmonary veins.
  ([(-18, 6, -14), (-36, 5, -10)], [8, 6]),
  ([(-18, 14, -24), (-36, 22, -30)], [8, 6]),
  ([(30, 4, -12), (46, -1, -8)], [7.5, 5.5]),
  ([(30, 14, -22), (44, 24, -30)], [7.5, 5.5]),
  # Azygos vein.
  (
    [
      (-4, 34, -150),
      (-7, 38, -20),
      (-10, 38, 30),
      (-22, 20, 44),
      (-27, -8, 42),
    ],
    [3, 3.5, 4, 4.5, 5],
  ),
]
_ARCH_BRANCHES = [
  (
    [(-6, -12, 58), (-16, -4, 90), (-26, 6, 140), (-30, 10, 210)],
    [7.5, 7, 5, 4],
  ),
  ([(5, 2, 66), (12, 4, 100), (20, 8, 150), (28, 10, 210)], [4.5, 4, 4, 4]),
  ([(14, 16, 64), (24, 18, 96), (40, 12, 124), (80, 0, 132)], [5.5, 5, 5, 4.5]),
]
_OESOPHAGUS = (
  [
    (3, 30, 210),
    (4, 32, 120),
    (4, 34, 50),
    (8, 32, 0),
    (12, 24, -50),
    (22, 14, -92),
    (34, 6, -108),
  ],
  [7, 7, 7, 7, 8, 8, 9],
)
_TRACHEA = (
  [(0, 6, 210), (0, 12, 130), (-2, 18, 70), (-3, 22, 32)],
  [8.5, 8.5, 8.5, 8.5],
)
_MAIN_BRONCHI = [
  ([(-3, 22, 33), (-16, 25, 18), (-32, 26, 6), (-46, 24, -4)], [8, 7, 6, 5]),
  ([(-3, 22, 33), (14, 24, 20), (34, 27, 6), (50, 26, -6)], [8, 6.5, 5.8, 5]),
]
_HEART = [
  # (centre, radii): left and right ventricle, right and left atrium.
  ((44, -26, -52), (35, 30, 40)),
  ((12, -50, -48), (38, 26, 40)),
  ((-24, -24, -34), (25, 29, 36)),
  ((4, 6, -20), (30, 19, 25)),
]
_PERICARDIUM = [
  ((28, -32, -48), (57, 48, 52)),
  ((-10, -24, -36), (43, 40, 46)),
  ((4, 2, -20), (34, 22, 29)),
]


def occupied(canvas: canvas_lib.Canvas) -> np.ndarray:
  """Returns mm inside the heart, vessels and airways, with their fat.

  Returns:
    float32 [z, y, x]; -9 from 9 mm outside of them.
  """
  nearest = np.full(canvas.hu.shape, -9.0, np.float32)
  shapes = [
    *(canvas_lib.Ellipsoid(*one) for one in _PERICARDIUM),
    *_tubes(
      _wider(_AORTA, 2.0),
      _wider(_PULMONARY_TRUNK, 2.0),
      _wider(_RIGHT_PULMONARY_ARTERY, 3.0),
      *(_wider(one, 2.5) for one in _VEINS),
      *(_wider(one, 3.5) for one in _ARCH_BRANCHES),
      _wider(_OESOPHAGUS, 2.0),
      # Around the airways, and where they end, some mm of tissue keep apart
      # what a threshold would otherwise make one lung.
      _wider(_TRACHEA, 5.0),
      *(_wider(one, 6.0) for one in _MAIN_BRONCHI),
    ),
  ]
  for shape in shapes:
    for region, level in shape.levels(canvas, margin=9.0):
      part = nearest[region.index]
      np.maximum(part, level, out=part)
  return nearest


def draw_organs(canvas: canvas_lib.Canvas) -> None:
  """Draws the heart, great vessels, oesophagus and nodes."""
  for centre, radii in _HEART:
    canvas.draw(canvas_lib.Ellipsoid(centre, radii), 55.0)
    hollow = tuple(np.asarray(radii) - (9 if centre[0] > 40 else 4))
    canvas.draw(canvas_lib.Ellipsoid(centre, hollow), 40.0)
  for tube in _tubes(
    _AORTA, _PULMONARY_TRUNK, _RIGHT_PULMONARY_ARTERY, *_VEINS, *_ARCH_BRANCHES
  ):
    canvas.draw(tube, BLOOD_HU)
  canvas.draw(_tubes(_OESOPHAGUS)[0], 38.0)
  nodes = [(-14, 4, 34), (2, 20, 18), (14, 2, 40), (-18, 10, 56), (-34, 18, 16)]
  for place in nodes:
    canvas.draw(canvas_lib.Ellipsoid(place, (4.5, 3.5, 5.5)), 36.0)
  # Thyroid at the neck.
  for side in (-1, 1):
    canvas.draw(canvas_lib.Ellipsoid((side * 16, 4, 178), (9, 9, 20)), 100.0)


def draw_airways(canvas: canvas_lib.Canvas) -> None:
  """Draws trachea and main bronchi."""
  for pair in (_TRACHEA, *_MAIN_BRONCHI):
    tube = canvas_lib.smooth_tube(*_wider(pair, 2.0))
    for region, level in tube.levels(canvas, margin=canvas.spacing):
      canvas.paint(level, _WALL_HU, region, only_raise=True)
  for pair in (_TRACHEA, *_MAIN_BRONCHI):
    lumen = canvas_lib.smooth_tube(*pair)
    for region, level in lumen.levels(canvas, margin=canvas.spacing):
      canvas.paint(level, -985.0, region)


def _tubes(*pairs):
  return [canvas_lib.smooth_tube(points, radii) for points, radii in pairs]


def _wider(pair, by):
  points, radii = pair
  return points, np.asarray(radii) + by
