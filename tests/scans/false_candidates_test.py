"""Places that resemble nodules: balls put into an empty lung, and patients."""

import dataclasses

import numpy as np
from scipy import ndimage

from transvw_tf2.scans import false_candidates
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import nodules as nodule_lib
from transvw_tf2.scans import phantom

_GEOMETRY = geometry_lib.Geometry(
  (100, 90, 80), (1.1, 1.2, 1.3), (-50.0, 20.0, 7.0)
)


def _make_scan(balls):
  """Returns a lung in soft tissue [z, y, x] with (centre, radius, HU) balls."""
  voxels = np.stack(np.indices(_GEOMETRY.size), axis=-1)
  points = _GEOMETRY.voxel_to_world(voxels)
  mask = np.zeros(_GEOMETRY.size, np.uint8)
  mask[15:-15, 15:-15, 12:-12] = 3
  hu = np.where(mask > 0, -850.0, 40.0)
  for centre, radius, ball_hu in balls:
    hu[np.linalg.norm(points - centre, axis=-1) < radius] = ball_hu
  return np.rint(hu).astype(np.int16).T, mask.T


def _detect(balls, nodules=()):
  return false_candidates.detect_blobs(
    np.random.default_rng(1), *_make_scan(balls), _GEOMETRY, nodules
  )


def test_balls_in_a_lung_are_found_where_they_are():
  centres = np.array([[-15.0, 60, 50], [10, 90, 60], [25, 70, 75], [0, 75, 40]])
  radii = [2.5, 3.0, 4.0, 3.5]
  balls = [(*ball, 40.0) for ball in zip(centres, radii, strict=True)]
  # Too faint, too small, and outside of the lung.
  balls.append((np.array([-5.0, 100, 75]), 3.0, -750.0))
  balls.append((np.array([20.0, 100, 35]), 0.8, 40.0))
  balls.append((np.array([-45.0, 30, 20]), 3.0, 700.0))
  found = _detect(balls)
  assert len(found) == len(centres)
  distances = np.linalg.norm(found[:, np.newaxis] - centres, axis=-1)
  assert sorted(distances.argmin(axis=1)) == [0, 1, 2, 3]
  # Half the diagonal of a voxel of 2 mm.
  assert distances.min(axis=1).max() < 1.8
  nodule = nodule_lib.Nodule(tuple(centres[2] + [4, 0, 0]), (3.0, 3.0, 3.0), 0)
  assert len(_detect(balls, [nodule])) == len(centres) - 1


def test_they_are_six_at_most():
  centres = [[x, y, 60.0] for x in (-20, 0, 20) for y in (55, 75, 95)]
  assert len(_detect([(np.array(one), 3.0, 40.0) for one in centres])) == 6


def test_an_empty_lung_has_none():
  assert _detect([]).shape == (0, 3)


def test_candidates_of_a_patient_are_blobs_and_its_scan_stays_the_same():
  variation = phantom.Variation(nodules=(3, 6), diameter=(6.0, 10.0))
  size = (160, 160, 112)
  plain = phantom.make_patient(3, 0, size, variation)
  one = phantom.make_patient(
    3, 0, size, dataclasses.replace(variation, detected_candidates=True)
  )
  assert one.scan_id == plain.scan_id
  np.testing.assert_array_equal(one.hu, plain.hu)
  assert one.false_candidates.shape == (6, 3)
  for nodule in one.nodules:
    distances = np.linalg.norm(one.false_candidates - nodule.centre, axis=-1)
    assert distances.min() > max(nodule.radii) + 10.0
  # SciPy's filter, on the voxels of the scan: sd of 2.5 mm.
  sigmas = np.divide(2.5, one.geometry.spacing)
  smooth = np.clip(one.hu, -1000, 100).astype(np.float32)
  response = np.zeros_like(smooth)
  for axis in range(3):
    order = [2 if axis == other else 0 for other in range(3)]
    response -= sigmas[axis] ** 2 * ndimage.gaussian_filter(
      smooth, sigmas, order
    )
  response = ndimage.maximum_filter(response, 3)

  def at(points):
    index = np.rint(one.geometry.world_to_voxel(points)).astype(int)
    return response[tuple(index.T)]

  usual = np.median(response[one.lung_mask > 0])
  assert np.median(at(one.false_candidates)) > 200 + usual
