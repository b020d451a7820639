"""Cubes and masks of target tasks against SimpleITK and closed forms."""

import numpy as np
import pytest
import SimpleITK as sitk

from transvw_tf2 import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import target_cubes

_SHAPE = (16, 16, 8)
# Turned by 20 degrees about z.
_COS, _SIN = np.cos(np.pi / 9), np.sin(np.pi / 9)
_GEOMETRY = geometry_lib.Geometry(
  (40, 36, 30),
  spacing=(0.7, 0.7, 1.5),
  origin=(-20.0, 30.0, 5.0),
  direction=(_COS, -_SIN, 0.0, _SIN, _COS, 0.0, 0.0, 0.0, 1.0),
)


def _make_hu(seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-1200, 1200, _GEOMETRY.size).astype(np.int16)


def _image(array):
  image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
  image.SetSpacing(_GEOMETRY.spacing)
  image.SetOrigin(_GEOMETRY.origin)
  image.SetDirection(_GEOMETRY.direction)
  return image


def _resample(array, box, shape, interpolator, fill):
  """Returns what SimpleITK gives on the grid of a box, [x, y, z]."""
  image = _image(array)
  step = np.divide(box.size, shape)
  first = (step - 1) / 2 + box.origin
  resampler = sitk.ResampleImageFilter()
  resampler.SetSize([int(side) for side in shape])
  resampler.SetOutputSpacing((step * _GEOMETRY.spacing).tolist())
  resampler.SetOutputOrigin(
    image.TransformContinuousIndexToPhysicalPoint(first.tolist())
  )
  resampler.SetOutputDirection(_GEOMETRY.direction)
  resampler.SetInterpolator(interpolator)
  resampler.SetDefaultPixelValue(fill)
  return sitk.GetArrayFromImage(resampler.Execute(image)).T


def test_the_box_lies_around_the_voxel_that_simpleitk_finds():
  image = _image(_make_hu())
  rng = np.random.default_rng(1)
  for voxel in rng.uniform(0, np.array(_GEOMETRY.size) - 1, (20, 3)):
    point = image.TransformContinuousIndexToPhysicalPoint(voxel.tolist())
    index = image.TransformPhysicalPointToIndex(point)
    box = target_cubes.CubeSize(_SHAPE).box_around(
      _GEOMETRY, _GEOMETRY.world_to_voxel(point)
    )
    assert box.size == _SHAPE
    assert index == tuple(np.add(box.origin, np.array(_SHAPE) // 2))


def test_an_extent_in_mm_becomes_voxels_of_the_scan():
  cube = target_cubes.CubeSize(_SHAPE, [14, 21, 30])
  box = cube.box_around(_GEOMETRY, (20, 18, 15))
  assert box.size == (20, 30, 20)
  assert box.origin == (10, 3, 5)


@pytest.mark.parametrize('origin', [(3, 4, 5), (-4, 25, -3), (60, 0, 0)])
def test_a_native_cube_is_exact_and_air_beyond_the_scan(origin):
  hu = _make_hu()
  cut = target_cubes.cut_cube(hu, target_cubes.Box(origin, _SHAPE), _SHAPE)
  assert (cut.dtype, cut.shape) == (np.int16, _SHAPE)
  padded = np.pad(hu, 80, constant_values=-1000)
  x, y, z = np.array(origin) + 80
  expected = padded[x : x + 16, y : y + 16, z : z + 8].clip(-1000, 1000)
  np.testing.assert_array_equal(cut, expected)


def test_a_finer_cube_is_what_simpleitk_interpolates():
  hu = _make_hu()
  box = target_cubes.Box((10, 12, 9), (10, 8, 6))
  cut = target_cubes.cut_cube(hu, box, _SHAPE)
  clipped = hu.clip(-1000, 1000).astype(np.float32)
  expected = _resample(clipped, box, _SHAPE, sitk.sitkLinear, -1000.0)
  # Samples beside the rim of the box: there the box is all that is known.
  inside = (slice(2, -2), slice(2, -2), slice(1, -1))
  np.testing.assert_allclose(cut[inside], expected[inside], atol=0.51)


def test_a_coarser_cube_is_smoothed_before():
  """A pattern finer than the cube's voxels must not come back as another."""
  stripes = np.zeros(_GEOMETRY.size, np.int16)
  stripes[::2] = 1000
  box = target_cubes.Box((4, 2, 11), (32, 32, 8))
  cut = target_cubes.cut_cube(stripes, box, (8, 8, 8))
  # Away from the rim: a quarter of the samples leave only the mean.
  assert np.abs(cut[2:-2] - 500).max() < 60


@pytest.mark.parametrize(
  'size', [(16, 16, 8), (10, 8, 6), (31, 21, 17), (33, 40, 11)]
)
def test_a_mask_is_what_simpleitk_takes_as_nearest(size):
  mask = np.random.default_rng(2).random(_GEOMETRY.size) < 0.5
  box = target_cubes.Box((-3, 10, 9), size)
  cut = target_cubes.cut_mask(mask, box, _SHAPE)
  assert (cut.dtype, cut.shape) == (np.uint8, _SHAPE)
  expected = _resample(
    mask.astype(np.uint8), box, _SHAPE, sitk.sitkNearestNeighbor, 0
  )
  # A sample in the middle between two voxels is a tie: leave those out.
  ties = np.zeros(_SHAPE, bool)
  for axis, (side, target) in enumerate(zip(size, _SHAPE, strict=True)):
    position = (np.arange(target) + 0.5) * side / target - 0.5
    half = np.isclose(position % 1, 0.5)
    ties |= np.expand_dims(half, [one for one in range(3) if one != axis])
  assert ties.mean() < 0.95
  np.testing.assert_array_equal(cut[~ties], expected[~ties])


@pytest.mark.parametrize('extent', [None, (12.8, 12.8, 12.8)])
def test_a_ball_has_its_volume_and_its_middle(extent):
  shape, diameter = (32, 32, 16), 9.0
  centre = _GEOMETRY.voxel_to_world((20.3, 17.6, 14.9))
  cube = target_cubes.CubeSize(shape, extent)
  voxel = _GEOMETRY.world_to_voxel(centre)
  box = cube.box_around(_GEOMETRY, voxel)
  mask = target_cubes.ball_mask(
    _GEOMETRY, box, shape, np.array([centre]), np.array([diameter])
  )
  step = np.divide(box.size, shape)
  volume = mask.sum() * np.prod(step * _GEOMETRY.spacing)
  assert volume == pytest.approx(np.pi / 6 * diameter**3, rel=0.03)
  middle = np.argwhere(mask).mean(axis=0) * step + (step - 1) / 2 + box.origin
  np.testing.assert_allclose(middle, voxel, atol=0.1)


def test_a_ball_smaller_than_a_voxel_still_marks_one():
  box = target_cubes.Box((10, 10, 10), _SHAPE)
  centre = _GEOMETRY.voxel_to_world((15.4, 12.6, 13.4))
  mask = target_cubes.ball_mask(
    _GEOMETRY, box, _SHAPE, np.array([centre]), np.array([0.1])
  )
  assert np.argwhere(mask).tolist() == [[5, 3, 3]]


@pytest.mark.parametrize(
  ('fields', 'line'),
  [
    ({'shape': (60, 64, 32)}, 'cube_shape must be three positive integers'),
    ({'shape': [64, 64]}, 'cube_shape must be three positive integers'),
    ({'shape': 64}, 'cube_shape must be three positive integers'),
    ({'extent_mm': [64, 64, 0]}, 'extent_mm must be three positive numbers'),
    ({'extent_mm': [1, 2, '3']}, 'extent_mm must be three positive numbers'),
  ],
)
def test_wrong_sizes_are_named(fields, line):
  with pytest.raises(errors.UserError, match=line):
    target_cubes.CubeSize(**fields)
