"""Geometry against SimpleITK and closed forms."""

import itertools
import pickle

import numpy as np
import pytest
import SimpleITK as sitk

from tests.scans import scan_files
from transvw_tf2.scans import geometry

_OBLIQUE = scan_files.rotation(2, 20) @ scan_files.rotation(0, 10)


def _geometry(direction, size=(4, 5, 6)):
  return geometry.Geometry(
    size=size,
    spacing=(0.5, 0.75, 2.0),
    origin=(-10.0, 20.0, 30.0),
    direction=tuple(float(one) for one in np.ravel(direction)),
  )


def test_default_is_the_identity_in_mm():
  points = [[0, 0, 0], [1, 2, 3]]
  np.testing.assert_array_equal(
    geometry.Geometry((4, 5, 6)).voxel_to_world(points), points
  )


def test_voxel_to_world_is_that_of_simpleitk():
  one = _geometry(_OBLIQUE)
  image = sitk.Image(*one.size, sitk.sitkInt16)
  image.SetSpacing(one.spacing)
  image.SetOrigin(one.origin)
  image.SetDirection(one.direction)
  for voxel in [(0, 0, 0), (3, 4, 5), (1.5, -2.0, 7.25)]:
    np.testing.assert_allclose(
      one.voxel_to_world(voxel),
      image.TransformContinuousIndexToPhysicalPoint(voxel),
      rtol=0,
      atol=1e-9,
    )


def test_world_to_voxel_inverts_voxel_to_world_in_any_shape():
  one = _geometry(_OBLIQUE)
  voxels = np.random.default_rng(0).uniform(-9, 9, (2, 3, 3))
  world = one.voxel_to_world(voxels)
  assert world.shape == (2, 3, 3)
  assert world.dtype == np.float64
  np.testing.assert_allclose(one.world_to_voxel(world), voxels, atol=1e-9)
  assert np.abs(world - voxels).max() > 1


def test_survives_pickling_after_use():
  one = _geometry(_OBLIQUE)
  one.voxel_to_world((1, 2, 3))
  assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize('axes', list(itertools.permutations(range(3))))
@pytest.mark.parametrize('signs', list(itertools.product((1, -1), repeat=3)))
def test_nearest_lps_keeps_every_voxel_in_its_place(axes, signs):
  matrix = _OBLIQUE @ (np.eye(3)[:, axes] * signs)
  stored = _geometry(matrix)
  array = np.arange(4 * 5 * 6).reshape(stored.size)
  reorientation = geometry.nearest_lps(stored)
  oriented = reorientation.of_geometry(stored)
  turned = reorientation.of_array(array)
  assert turned.shape == oriented.size
  # Each diagonal entry is the largest of its column, and positive.
  direction = np.reshape(oriented.direction, (3, 3))
  assert np.all(np.diag(direction) > 0.9)
  for voxel in np.ndindex(*stored.size):
    there = oriented.world_to_voxel(stored.voxel_to_world(voxel))
    index = tuple(np.rint(there).astype(int))
    np.testing.assert_allclose(there, index, atol=1e-9)
    assert turned[index] == array[voxel]


def test_nearest_lps_leaves_lps_alone_and_writes_no_negative_zero():
  plain = _geometry(np.eye(3))
  assert geometry.nearest_lps(plain).of_geometry(plain) == plain
  flipped = _geometry(np.diag([-1.0, -1.0, 1.0]))
  oriented = geometry.nearest_lps(flipped).of_geometry(flipped)
  assert '-0.0' not in repr(oriented.direction)
  assert oriented.origin == (-10.0 - 3 * 0.5, 20.0 - 4 * 0.75, 30.0)
