"""The template anatomy that every synthetic patient is a bent copy of.

In mm: x runs left, y posterior and z superior about the middle of the chest.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans.anatomy import abdomen
from transvw_tf2.scans.anatomy import canvas as canvas_lib
from transvw_tf2.scans.anatomy import chest_wall
from transvw_tf2.scans.anatomy import lungs
from transvw_tf2.scans.anatomy import mediastinum

LEFT_LUNG = 3
RIGHT_LUNG = 4

# HU of the template's tissues, (lowest, highest).
TISSUE_HU = {
  'air': (-1000, -950),
  'lung': (-900, -700),
  'fat': (-125, -75),
  'muscle': (35, 70),
  'blood': (30, 60),
  'liver': (45, 70),
  'bone': (150, 1000),
}

# Places in the middle of tissues: name to (tissue, template mm).
LANDMARKS = {
  'trachea': ('air', (-1.0, 16.0, 90.0)),
  'right main bronchus': ('air', (-15.0, 25.0, 18.0)),
  'right upper lobe': ('lung', (-79.5, -9.0, 54.0)),
  'left lower lobe': ('lung', (78.0, 13.5, -66.0)),
  'fat under the skin': ('fat', (-153.0, 3.0, -21.0)),
  'fat of the mediastinum': ('fat', (1.5, -60.0, 36.0)),
  'muscle beside the spine': ('muscle', (28.5, 95.0, -33.0)),
  'descending aorta': ('blood', (25.0, 40.0, -30.0)),
  'left ventricle': ('blood', (42.0, -28.0, -52.0)),
  'dome of the liver': ('liver', (-66.0, -3.0, -104.0)),
  'vertebra': ('bone', (0.0, 54.0, 20.0)),
  'breast bone': ('bone', (0.0, -100.5, -16.5)),
}

# Half the sides of a box around the lungs, template mm.
LUNG_BOX = np.array([135.0, 100.0, 140.0])

SPACING = 1.5
_HALF = (183.0, 135.0, 195.0)
# Voxels, of the side of a cube of noise.
_TILE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
  """The drawn template.

  Attributes:
    hu: int16 [x, y, z], HU.
    lungs: uint8 [x, y, z], 3 left lung, 4 right lung, as in LUNA16's masks.
    geometry: where its voxels lie, mm.
    vessels: float64 (n, 3) mm, places in vessels deep in the lungs.
    back: float64 (n, 3) mm, places on the skin of the back.
  """

  hu: np.ndarray
  lungs: np.ndarray
  geometry: geometry_lib.Geometry
  vessels: np.ndarray
  back: np.ndarray


@functools.cache
def draw() -> Template:
  """Draws the template, once per process."""
  canvas = canvas_lib.Canvas(_HALF, SPACING)
  rng = np.random.default_rng(20)
  grain = _grain(rng, canvas.hu.shape, 4.0)
  fine = _grain(rng, canvas.hu.shape, 1.0)
  wall = chest_wall.make_wall(canvas.whole)
  chest_wall.draw_soft_tissue(canvas, wall, grain)
  inside = canvas.where(wall.cage > -SPACING)
  fat = -95.0 + 6.0 * grain[inside.index]
  canvas.paint(wall.cage[inside.index], fat, inside)
  dome = abdomen.diaphragm(canvas.whole.x, canvas.whole.y)
  abdomen.draw(canvas, wall, dome, grain)
  mediastinum.draw_organs(canvas)
  levels = lungs.levels(canvas, wall, dome)
  labels = np.zeros(canvas.hu.shape, np.uint8)
  for side, label in ((1, LEFT_LUNG), (-1, RIGHT_LUNG)):
    labels[levels[side] > 0] = label
    lungs.draw(canvas, levels[side], side, grain, fine)
  chest_wall.draw_ribs(canvas, wall)
  chest_wall.draw_spine(canvas)
  chest_wall.draw_breast_bone(canvas)
  chest_wall.draw_shoulders(canvas, wall)
  depth = np.maximum(levels[1], levels[-1])
  mediastinum.draw_airways(canvas)
  vessels = np.argwhere((depth > 6.0) & (canvas.hu > -200.0))
  hu = np.rint(canvas.hu).astype(np.int16).T
  return Template(
    hu=hu,
    lungs=labels.T,
    geometry=geometry_lib.Geometry(
      size=hu.shape,
      spacing=(canvas.spacing,) * 3,
      origin=tuple((-canvas.half).tolist()),
    ),
    vessels=vessels[::5, ::-1] * canvas.spacing - canvas.half,
    back=_find_back(hu, canvas),
  )


def _grain(rng, shape, sigma):
  """Returns smooth noise with sd 1; sigma in voxels, float32."""
  # A tile that repeats after about 190 mm costs a fifth of noise everywhere.
  noise = rng.standard_normal((_TILE,) * 3, np.float32)
  noise = ndimage.gaussian_filter(noise, sigma, truncate=2.5, mode='wrap')
  repeats = [-(-side // _TILE) for side in shape]
  whole = np.tile(noise / noise.std(), repeats)
  return whole[tuple(slice(side) for side in shape)]


def _find_back(hu, canvas):
  """Returns places on the back, every 9 mm, template mm (n, 3)."""
  step = round(9.0 / canvas.spacing)
  body = hu[::step, :, ::step] > -500
  x, z = np.nonzero(body.any(axis=1))
  last = hu.shape[1] - 1 - np.argmax(body[x, ::-1, z], axis=1)
  index = np.stack([x * step, last, z * step], axis=1)
  return index * canvas.spacing - canvas.half
