"""Transforms agree with ITK, go both ways, and never fold."""

import dataclasses
import os

import numpy as np
import pytest
import SimpleITK as sitk

from transvw_tf2 import errors
from transvw_tf2.scans import bend as bend_lib
from transvw_tf2.scans import geometry as geometry_lib

_GEOMETRY = geometry_lib.Geometry(
  (96, 80, 64), (3.8, 3.8, 5.1), (-120.0, 33.0, -700.0)
)


def _draw(seed, geometry=_GEOMETRY, centre=(10.0, -5.0, 3.0), **changes):
  settings = {
    'translation_sd': 20.0,
    'rotation_sd': 3.0,
    'scale': (0.85, 1.2),
    'displacement_sd': 5.0,
  }
  rng = np.random.default_rng(seed)
  return bend_lib.draw(rng, geometry, centre, **(settings | changes))


def _points(geometry, number, seed=0):
  voxels = np.random.default_rng(seed).uniform(size=(number, 3))
  return geometry.voxel_to_world(voxels * (np.array(geometry.size) - 1))


def test_points_go_where_itk_puts_them():
  bend = _draw(1)
  composite = bend_lib.to_itk(bend)
  points = _points(_GEOMETRY, 300)
  wanted = [composite.TransformPoint(point.tolist()) for point in points]
  np.testing.assert_allclose(bend.apply(points), wanted, atol=1e-9)


def test_slabs_are_the_same_map_in_voxels():
  bend = _draw(2)
  turned = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
  original = geometry_lib.Geometry(
    (50, 60, 70), (1.5, 2.0, 2.5), (-30.0, 20.0, 5.0), turned
  )
  voxels = np.full((*_GEOMETRY.size, 3), np.nan)
  covered = []
  for slab, index in bend.slabs(_GEOMETRY, original, slices=7):
    assert index.dtype == np.float32
    covered.extend(range(slab.start, slab.stop))
    voxels[:, :, slab] = index.transpose(3, 2, 1, 0)[..., ::-1]
  assert covered == list(range(64))
  picked = np.random.default_rng(3).integers(0, _GEOMETRY.size, (200, 3))
  places = bend.apply(_GEOMETRY.voxel_to_world(picked))
  np.testing.assert_allclose(
    voxels[tuple(picked.T)], original.world_to_voxel(places), atol=1e-3
  )


def test_there_and_back():
  for seed in range(5):
    bend = _draw(seed, displacement_sd=6.0)
    points = _points(_GEOMETRY, 100, seed)
    np.testing.assert_allclose(
      bend.invert(bend.apply(points)), points, atol=1e-4
    )


def _determinants(bend, points, step=0.5):
  """Returns the Jacobian determinants of a map, by central differences."""
  columns = [
    (bend.apply(points + shift) - bend.apply(points - shift)) / (2 * step)
    for shift in np.eye(3) * step
  ]
  return np.linalg.det(np.stack(columns, axis=-1))


def test_it_never_folds():
  for seed in range(8):
    bend = _draw(seed, displacement_sd=6.0)
    determinants = _determinants(bend, _points(_GEOMETRY, 4000, seed))
    assert determinants.min() > 0.1
    # And not one that is barely bent either.
    assert determinants.std() > 0.02


def test_no_coefficient_is_larger_than_what_keeps_from_folding():
  largest = max(
    np.abs(one.coefficients / one.spacing).max()
    for one in (_draw(seed, displacement_sd=6.0) for seed in range(5))
  )
  assert largest == pytest.approx(1 / 2.48)


def test_the_largest_coefficients_do_not_fold_but_larger_ones_do():
  bend = _draw(0)
  points = _points(_GEOMETRY, 4000)
  lowest = {1.0: [], 3.0: []}
  for seed in range(6):
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], bend.coefficients.shape)
    for factor, found in lowest.items():
      largest = dataclasses.replace(
        bend, coefficients=factor * signs * bend.spacing / 2.48
      )
      found.append(_determinants(largest, points).min())
  assert min(lowest[1.0]) > 0
  assert max(lowest[3.0]) < 0


def test_spreads_are_what_was_asked_for():
  displacements, shifts, scales, angles = [], [], [], []
  middle = _GEOMETRY.voxel_to_world((np.array(_GEOMETRY.size) - 1) / 2)
  for seed in range(150):
    bend = _draw(seed, centre=(0.0, 0.0, 0.0))
    displacements.append(bend.displacement(_points(_GEOMETRY, 50, seed)))
    scale = 1 / np.linalg.norm(bend.matrix, axis=1)
    turn = np.diag(scale) @ bend.matrix
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    scales.append(scale)
    angles.append(np.degrees(np.arccos((np.trace(turn) - 1) / 2)))
    # Where the middle of the original lies, from the middle of the scan.
    centre = np.linalg.solve(bend.matrix, -bend.offset)
    shifts.append(centre - middle)
  sd = np.std(np.concatenate(displacements), axis=0)
  np.testing.assert_allclose(sd, 5.0, rtol=0.15)
  np.testing.assert_allclose(np.std(shifts, axis=0), 20.0, rtol=0.2)
  assert 0.85 <= np.min(scales) < 0.87
  assert 1.18 < np.max(scales) <= 1.2
  # Three independent small angles of 3 degrees.
  assert np.sqrt(np.mean(np.square(angles))) == pytest.approx(
    3.0 * np.sqrt(3.0), rel=0.15
  )


def test_no_variation_only_centres():
  bend = _draw(
    4, translation_sd=0.0, rotation_sd=0.0, scale=(1, 1), displacement_sd=0.0
  )
  middle = _GEOMETRY.voxel_to_world((np.array(_GEOMETRY.size) - 1) / 2)
  points = _points(_GEOMETRY, 20)
  np.testing.assert_allclose(
    bend.apply(points), points - middle + (10.0, -5.0, 3.0), atol=1e-9
  )


def test_it_depends_on_the_box_and_not_on_the_voxels():
  finer = geometry_lib.Geometry(
    (192, 160, 128),
    tuple(side / 2 for side in _GEOMETRY.spacing),
    tuple(
      start - side / 4
      for start, side in zip(_GEOMETRY.origin, _GEOMETRY.spacing, strict=True)
    ),
  )
  points = _points(_GEOMETRY, 30)
  np.testing.assert_allclose(
    _draw(5, finer).apply(points), _draw(5).apply(points), atol=1e-6
  )
  assert np.abs(_draw(6).apply(points) - _draw(5).apply(points)).max() > 1.0


def test_files_keep_it_and_itk_reads_them(tmp_path):
  bend = _draw(7)
  path = os.fspath(tmp_path / 'one.tfm')
  bend_lib.write(path, bend)
  again = bend_lib.read(path)
  for field in dataclasses.fields(bend):
    np.testing.assert_allclose(
      getattr(again, field.name), getattr(bend, field.name), rtol=1e-12
    )
  point = _points(_GEOMETRY, 1)[0]
  np.testing.assert_allclose(
    sitk.ReadTransform(path).TransformPoint(point.tolist()),
    bend.apply(point),
    atol=1e-9,
  )


def test_other_files_are_refused(tmp_path):
  path = os.fspath(tmp_path / 'two.tfm')
  sitk.WriteTransform(sitk.AffineTransform(3), path)
  with pytest.raises(errors.UserError, match=r'two.tfm is not the transform'):
    bend_lib.read(path)
  (tmp_path / 'three.tfm').write_text('nonsense')
  with pytest.raises(errors.UserError, match=r'three.tfm is not'):
    bend_lib.read(os.fspath(tmp_path / 'three.tfm'))


def test_too_much_bending_is_refused():
  with pytest.raises(errors.UserError, match=r'is 7.0 mm; at most 6.0 mm'):
    _draw(0, displacement_sd=7.0)


def test_truth_goes_from_voxels_to_the_original_and_back():
  truth = bend_lib.Truth(_GEOMETRY, _draw(8))
  voxels = np.array([[[3.0, 70.5, 60.0], [95.0, 0.0, 0.0]]])
  places = truth.template_coordinates(voxels)
  world = np.array(_GEOMETRY.origin) + voxels * np.array(_GEOMETRY.spacing)
  np.testing.assert_allclose(places, truth.bend.apply(world))
  np.testing.assert_allclose(truth.scan_voxels(places), voxels, atol=1e-4)
  inside = truth.in_scan(world + [[[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]]])
  assert inside.tolist() == [[True, False]]
