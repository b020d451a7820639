"""Local shuffling against plain loops."""

import collections
import itertools

import numpy as np
import pytest
from scipy import stats

from transvw_tf2.perturb import shuffle

_SHAPE = (64, 64, 32)


def _seeds(count):
  rng = np.random.default_rng(25)
  return rng.integers(-(2**31), 2**31, (count, 2)).astype(np.int32)


def _cubes(shape, count):
  """Cubes in which every voxel has a value of its own."""
  size = count * np.prod(shape)
  values = np.random.default_rng(26).permutation(size) / size
  return values.reshape(count, *shape, 1).astype(np.float32)


def _shuffle_with_loops(cube, corners, sides, orders):
  shuffled = cube.copy()
  for corner, side, order in zip(corners, sides, orders, strict=True):
    voxels = [
      tuple(corner + offset) for offset in itertools.product(*map(range, side))
    ]
    for target, source in zip(voxels, order, strict=False):
      shuffled[target] = cube[voxels[source]]
  return shuffled


def _numpy(blocks):
  return shuffle.Blocks(*(value.numpy() for value in blocks))


@pytest.mark.parametrize(
  ('shape', 'count'),
  [((64, 64, 32), 3), ((20, 13, 11), 8), ((5, 4, 3), 8), ((1, 1, 1), 2)],
)
def test_apply_equals_loops(shape, count):
  cubes = _cubes(shape, count)
  blocks = _numpy(shuffle.draw_blocks(_seeds(count), shape))
  got = shuffle.apply(cubes, blocks).numpy()
  assert got.shape == cubes.shape and got.dtype == np.float32
  for number, cube in enumerate(cubes):
    want = _shuffle_with_loops(cube, *(value[number] for value in blocks))
    np.testing.assert_array_equal(got[number], want)


def test_later_blocks_overwrite_with_values_of_the_cube_before():
  cube = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1, 1)
  blocks = shuffle.Blocks(
    corners=np.array([[[0, 0, 0], [1, 0, 0]]], np.int32),
    sides=np.array([[[3, 1, 1], [2, 1, 1]]], np.int32),
    orders=np.array([[[2, 0, 1], [1, 0, 2]]], np.int32),
  )
  got = shuffle.apply(cube, blocks).numpy().ravel()
  # First 2 0 1 3; then voxels 1 and 2 get the former values 2 and 1.
  assert got.tolist() == [2, 2, 1, 3]


def test_a_block_keeps_its_voxels_and_nothing_else_changes():
  cubes = _cubes(_SHAPE, 40)
  blocks = _numpy(shuffle.draw_blocks(_seeds(40), _SHAPE, blocks=1))
  got = shuffle.apply(cubes, blocks).numpy()
  changed = 0
  for number in range(40):
    corner, side = blocks.corners[number, 0], blocks.sides[number, 0]
    block = tuple(
      slice(start, start + length)
      for start, length in zip(corner, side, strict=True)
    )
    before, after = cubes[number].copy(), got[number].copy()
    np.testing.assert_array_equal(
      np.sort(before[block], axis=None), np.sort(after[block], axis=None)
    )
    changed += np.any(before[block] != after[block])
    before[block] = after[block] = 0
    np.testing.assert_array_equal(before, after)
  assert changed > 30  # a block of one voxel is rare


def test_drawn_sides_and_corners():
  blocks = _numpy(shuffle.draw_blocks(_seeds(2000), _SHAPE))
  assert blocks.sides.shape == blocks.corners.shape == (2000, 5, 3)
  for axis, largest in enumerate((6, 6, 3)):
    sides = blocks.sides[..., axis]
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == list(range(1, largest + 1))
    assert stats.chisquare(counts).pvalue > 1e-3
    for side in values:
      corners = blocks.corners[..., axis][sides == side]
      values, counts = np.unique(corners, return_counts=True)
      assert values.tolist() == list(range(_SHAPE[axis] - side + 1))
      assert stats.chisquare(counts).pvalue > 1e-4
  variables = np.concatenate([blocks.sides, blocks.corners], axis=-1)
  correlation = np.corrcoef(variables.reshape(2000, 30), rowvar=False)
  # A large side leaves fewer corners, by 5 in 64 voxels at most.
  np.testing.assert_allclose(correlation, np.eye(30), atol=0.14)


def test_orders_are_permutations():
  blocks = _numpy(shuffle.draw_blocks(_seeds(200), _SHAPE))
  assert blocks.orders.shape == (200, 5, 6 * 6 * 3)
  for side, order in zip(
    blocks.sides.reshape(-1, 3), blocks.orders.reshape(-1, 108), strict=True
  ):
    voxels = np.prod(side)
    assert sorted(order[:voxels]) == list(range(voxels))


def test_all_orders_are_equally_frequent():
  # Sides 1 to 3, 1 and 1: blocks of three voxels have six orders.
  blocks = _numpy(shuffle.draw_blocks(_seeds(4000), (30, 10, 10), blocks=2))
  whole = blocks.orders[blocks.sides[..., 0] == 3]
  counts = collections.Counter(map(tuple, whole))
  assert len(counts) == 6
  assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize('shape', [(16, 16, 16), (9, 3, 1)])
def test_small_cubes_have_blocks_of_one_voxel(shape):
  blocks = _numpy(shuffle.draw_blocks(_seeds(100), shape))
  assert np.all(blocks.sides == 1)
  assert np.all(blocks.corners >= 0) and np.all(blocks.corners < shape)
