"""Cubes against SciPy's linear interpolation."""

import numpy as np
import pytest
from scipy import ndimage

from transvw_tf2 import schema
from transvw_tf2.discovery import cubes


def _scan(size=(90, 88, 40), low=-1400, high=1400, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(low, high, size).astype(np.int16)


def _resize_with_scipy(box):
  """Linear, half-pixel centres, mirrored about the outermost centres."""
  clipped = np.clip(box, schema.HU_MIN, schema.HU_MAX).astype(np.float64)
  centres = [
    (np.arange(target) + 0.5) * side / target - 0.5
    for side, target in zip(box.shape, schema.CUBE_SHAPE, strict=True)
  ]
  return ndimage.map_coordinates(
    clipped,
    np.stack(np.meshgrid(*centres, indexing='ij')),
    order=1,
    mode='mirror',
  )


@pytest.mark.parametrize('origin', [(0, 0, 0), (7, 3, 5), (26, 24, 8)])
def test_a_native_cube_is_exact_but_for_clipping(origin):
  hu = _scan()
  cube = cubes.cut_cube(hu, origin, schema.CUBE_SHAPE)
  assert cube.dtype == np.int16
  assert cube.shape == schema.CUBE_SHAPE
  for voxel in [(0, 0, 0), (63, 63, 31), (5, 60, 17)]:
    wanted = int(hu[tuple(np.add(origin, voxel))])
    assert cube[voxel] == min(max(wanted, -1000), 1000)
  x, y, z = origin
  np.testing.assert_array_equal(
    cube, hu[x : x + 64, y : y + 64, z : z + 32].clip(-1000, 1000)
  )


@pytest.mark.parametrize('side', [50, 51, 63, 65, 72, 79])
def test_a_resized_cube_is_that_of_scipy_rounded(side):
  hu = _scan()
  cube = cubes.cut_cube(hu, (4, 6, 2), (side, side, 32))
  assert cube.dtype == np.int16
  assert cube.shape == schema.CUBE_SHAPE
  wanted = _resize_with_scipy(hu[4 : 4 + side, 6 : 6 + side, 2:34])
  # Half a HU of rounding, and what float32 does at such numbers.
  assert np.abs(cube - wanted).max() <= 0.5 + 1e-3
  assert np.abs(cube - wanted).mean() > 0.1  # so it is rounded, not equal


def test_sides_may_differ_and_axes_are_not_mixed_up():
  hu = _scan()
  cube = cubes.cut_cube(hu, (1, 2, 3), (50, 79, 32))
  wanted = _resize_with_scipy(hu[1:51, 2:81, 3:35])
  assert np.abs(cube - wanted).max() <= 0.5 + 1e-3


def test_values_are_clipped_before_resizing():
  hu = np.where(np.arange(90)[:, None, None] % 2, 1000, -3000).astype(np.int16)
  hu = np.broadcast_to(hu, (90, 88, 40))
  cube = cubes.cut_cube(hu, (0, 0, 0), (79, 79, 32))
  # Clipped afterwards, the mean of neighbours would be -1000.
  assert np.abs(cube).mean() < 600
  assert cube.min() >= -1000


def test_a_flat_scan_stays_flat():
  hu = np.full((90, 88, 40), 37, np.int16)
  for side in range(50, 80):
    assert np.all(cubes.cut_cube(hu, (0, 0, 0), (side, side, 32)) == 37)


def test_the_scan_is_left_alone():
  hu = _scan()
  before = hu.copy()
  hu.setflags(write=False)
  cube = cubes.cut_cube(hu, (0, 0, 0), schema.CUBE_SHAPE)
  cube[:] = 5
  np.testing.assert_array_equal(hu, before)


@pytest.mark.parametrize(
  ('origin', 'size'),
  [
    ((27, 0, 0), (64, 64, 32)),
    ((0, 0, 9), (64, 64, 32)),
    ((-1, 0, 0), (64, 64, 32)),
    ((40, 0, 0), (51, 50, 32)),
  ],
)
def test_a_box_must_lie_inside_the_scan(origin, size):
  with pytest.raises(ValueError, match='does not lie inside the scan of'):
    cubes.cut_cube(_scan(), origin, size)


def test_slices_are_never_resized():
  with pytest.raises(ValueError, match='32 slices, got 30'):
    cubes.cut_cube(_scan(), (0, 0, 0), (60, 60, 30))


def _resize_with_filter(box):
  """SciPy: a Gaussian of sd (factor - 1) / 2, then linear samples."""
  clipped = np.clip(box, schema.HU_MIN, schema.HU_MAX).astype(np.float64)
  sigma = [
    max(0.0, (side / cube - 1) / 2)
    for side, cube in zip(box.shape, schema.CUBE_SHAPE, strict=True)
  ]
  return _resize_with_scipy(
    ndimage.gaussian_filter(clipped, sigma, mode='mirror')
  )


@pytest.mark.parametrize(
  'size', [(64, 64, 40), (31, 45, 12), (90, 88, 33), (80, 40, 7), (64, 64, 31)]
)
def test_anti_aliasing_takes_boxes_of_all_sides(size):
  hu = _scan()
  cube = cubes.cut_cube(hu, (0, 0, 0), size, anti_aliasing=True)
  assert (cube.shape, cube.dtype) == (schema.CUBE_SHAPE, np.int16)
  wanted = _resize_with_filter(hu[tuple(map(slice, size))])
  assert np.abs(cube - wanted).max() <= 0.5 + 5e-3
  assert np.abs(cube - wanted).mean() > 0.1


def test_anti_aliasing_leaves_a_native_cube_alone():
  hu = _scan()
  np.testing.assert_array_equal(
    cubes.cut_cube(hu, (2, 3, 4), schema.CUBE_SHAPE, anti_aliasing=True),
    cubes.cut_cube(hu, (2, 3, 4), schema.CUBE_SHAPE),
  )


def test_anti_aliasing_hides_what_fewer_voxels_cannot_show():
  """A checkerboard of slices turns grey; mere samples would show stripes."""
  hu = np.zeros((64, 64, 96), np.int16)
  hu[..., ::2] = 800
  cube = cubes.cut_cube(hu, (0, 0, 0), hu.shape, anti_aliasing=True)
  assert np.abs(cube[..., 1:-1] - 400).max() < 60


def test_a_box_of_one_slice_gives_a_cube_of_it():
  hu = _scan()
  cube = cubes.cut_cube(hu, (0, 0, 7), (64, 64, 1), anti_aliasing=True)
  for z in range(32):
    np.testing.assert_array_equal(
      cube[..., z], hu[:64, :64, 7].clip(-1000, 1000)
    )
