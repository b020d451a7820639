"""The published perturbation of a cube, as one would write it for NumPy, SciPy.

Elastic deformation, then one of local shuffling, non-linear intensity,
in-painting and out-painting. `draw_` functions take a generator and return what
`apply_` functions and `deform` take, so that both can be tested. Needs nothing
of this project: what is ours is measured, and tested, against it.

A cube is float32 (X, Y, Z) in [0, 1]; places and sides are voxels.
"""

import functools

import numpy as np
from scipy import ndimage

SHUFFLE, INTENSITY, INPAINT, OUTPAINT = range(4)
KERAS, PYTORCH = 'keras', 'pytorch'

_SIGMA = 8
_SCALE = 991
_BLOCKS = 5
_CURVE_POINTS = 100_000
_MARGIN = 3


def perturb(cube, rng, variant=KERAS):
  """Returns a perturbed copy of a cube, drawn by a generator."""
  deformed = deform(cube, draw_displacement(rng, cube.shape))
  return apply_choice(deformed, draw_choice(rng), rng, variant)


def apply_choice(cube, choice, rng, variant=KERAS):
  """Returns a copy of a cube after one of the four, drawn by a generator."""
  if choice == SHUFFLE:
    return apply_shuffle(cube, draw_shuffle(rng, cube.shape))
  if choice == INTENSITY:
    return apply_curve(cube, *draw_curve(rng))
  if choice == INPAINT:
    corner, sides = draw_inpaint_block(rng, cube.shape, variant)
    painted = cube.copy()
    block = _slices(corner, sides)
    painted[block] = draw_fill(rng, sides, variant)
    return painted
  corner, sides = draw_outpaint_block(rng, cube.shape, variant)
  painted = np.empty_like(cube)
  painted[...] = draw_fill(rng, cube.shape, variant)
  block = _slices(corner, sides)
  painted[block] = cube[block]
  return painted


def draw_choice(rng):
  """Returns which of the four a cube gets, 25 % each."""
  return rng.integers(4)


def draw_displacement(rng, shape):
  """Returns smooth random displacements in x and y, float32 (2, X, Y, Z)."""
  displacement = np.empty((2, *shape), np.float32)
  for field in displacement:
    noise = 2 * rng.random(shape, np.float32) - 1
    ndimage.gaussian_filter(noise, _SIGMA, mode='constant', output=field)
    field *= _SCALE
  return displacement


def deform(cube, displacement):
  """Moves the voxels of a cube, with linear interpolation."""
  x, y, z = _grid(cube.shape)
  places = [x + displacement[0], y + displacement[1], z]
  return ndimage.map_coordinates(cube, places, order=1, mode='reflect')


def draw_shuffle(rng, shape):
  """Returns five blocks: corner, sides and the order of the voxels of each."""
  blocks = []
  for _ in range(_BLOCKS):
    sides = [rng.integers(1, length // 10 + 1) for length in shape]
    corner = [
      rng.integers(0, length - side + 1)
      for length, side in zip(shape, sides, strict=True)
    ]
    blocks.append((corner, sides, rng.permutation(np.prod(sides))))
  return blocks


def apply_shuffle(cube, blocks):
  """Shuffles the voxels of small blocks."""
  shuffled = cube.copy()
  for corner, sides, order in blocks:
    block = _slices(corner, sides)
    shuffled[block] = cube[block].ravel()[order].reshape(sides)
  return shuffled


def draw_curve(rng):
  """Returns a, b, c, d of a Bezier curve, and whether it falls."""
  return rng.random(4, np.float32), rng.random() < 0.5


def apply_curve(cube, points, falling):
  """Maps values through the curve (0, 0), (a, b), (c, d), (1, 1)."""
  a, b, c, d = points
  x, y = np.array([[a, c, 1], [b, d, 1]], float) @ _bernstein()
  # Both rise already: the points are in [0, 1].
  mapped = np.interp(cube, x, y[::-1] if falling else y)
  return mapped.astype(np.float32)


def draw_inpaint_block(rng, shape, variant=KERAS):
  """Returns corner and sides of the block that is painted over."""
  if variant == PYTORCH:
    ranges = [(length // 6, length // 3) for length in shape]
  else:
    ranges = [(10, 20)] * 3
  return _draw_block(rng, shape, ranges)


def draw_outpaint_block(rng, shape, variant=KERAS):
  """Returns corner and sides of the block that is kept."""
  if variant == PYTORCH:
    parts = [(3 * length // 7, 4 * length // 7) for length in shape]
  else:
    parts = [(10, 20)] * 3
  ranges = [
    (length - most, length - fewest)
    for length, (fewest, most) in zip(shape, parts, strict=True)
  ]
  return _draw_block(rng, shape, ranges)


def draw_fill(rng, shape, variant=KERAS):
  """Returns what is painted: one value, or one for each voxel."""
  return rng.random(shape if variant == PYTORCH else (), np.float32)


def _draw_block(rng, shape, ranges):
  """Returns corner and sides of a block, the sides in closed ranges."""
  sides = [rng.integers(low, high + 1) for low, high in ranges]
  corner = [
    rng.integers(_MARGIN, length - side - _MARGIN + 1)
    for length, side in zip(shape, sides, strict=True)
  ]
  return corner, sides


def _slices(corner, sides):
  """Returns the index of a block."""
  return tuple(
    slice(start, start + side)
    for start, side in zip(corner, sides, strict=True)
  )


@functools.cache
def _grid(shape):
  """Returns the places of all voxels, three float32 (X, Y, Z)."""
  return np.meshgrid(
    *(np.arange(length, dtype=np.float32) for length in shape), indexing='ij'
  )


@functools.cache
def _bernstein():
  """Returns the polynomials of control points 1 to 3, float64 (3, points)."""
  t = np.linspace(0, 1, _CURVE_POINTS)
  return np.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
