"""Shapes have the volumes of geometry, and lie where they were put."""

import numpy as np
import pytest

from transvw_tf2.scans.anatomy import canvas as canvas_lib


def _volume(canvas, value=0.0):
  """Returns mm^3 painted with `value` over air, soft edges counted in part."""
  share = (canvas.hu + 1000.0) / (value + 1000.0)
  return float(share.sum(dtype=np.float64)) * canvas.spacing**3


def test_axes_are_z_y_x_about_the_origin():
  canvas = canvas_lib.Canvas((10.0, 20.0, 30.0), 2.0)
  assert canvas.hu.shape == (31, 21, 11)
  assert canvas.hu.dtype == np.float32
  assert (canvas.hu == -1000).all()
  whole = canvas.whole
  assert whole.x.shape == (1, 1, 11)
  assert (whole.x.min(), whole.y.min(), whole.z.max()) == (-10, -20, 30)


def test_a_box_and_scattered_voxels_know_their_places():
  canvas = canvas_lib.Canvas((10.0, 10.0, 10.0), 1.0)
  box = canvas.region((-2.0, 3.0, 9.0), (2.0, 4.0, 99.0))
  np.testing.assert_array_equal(box.x.ravel(), [-2, -1, 0, 1, 2])
  np.testing.assert_array_equal(box.y.ravel(), [3, 4])
  np.testing.assert_array_equal(box.z.ravel(), [9, 10])
  assert canvas.region((11.0, 0.0, 0.0), (12.0, 1.0, 1.0)) is None
  mask = np.zeros(canvas.hu.shape, bool)
  mask[3, 5, 7] = True
  voxel = canvas.where(mask)
  assert (voxel.x, voxel.y, voxel.z) == (-3.0, -5.0, -7.0)
  canvas.paint(np.full(1, 5.0), 40.0, voxel)
  assert canvas.hu[3, 5, 7] == 40.0
  assert (canvas.hu != -1000).sum() == 1


def test_an_ellipsoid_has_its_volume_and_centre():
  canvas = canvas_lib.Canvas((40.0, 40.0, 40.0), 1.0)
  canvas.draw(canvas_lib.Ellipsoid((5.0, -3.0, 8.0), (20.0, 12.0, 9.0)), 0.0)
  wanted = 4 / 3 * np.pi * 20.0 * 12.0 * 9.0
  assert _volume(canvas) == pytest.approx(wanted, rel=0.01)
  z, y, x = np.argwhere(canvas.hu > -500).mean(0) - 40.0
  np.testing.assert_allclose((x, y, z), (5.0, -3.0, 8.0), atol=0.05)


def test_a_tube_has_the_volume_of_a_cylinder_with_round_ends():
  canvas = canvas_lib.Canvas((40.0, 40.0, 40.0), 1.0)
  points = np.array([(-10.0, -12.0, -14.0), (10.0, 12.0, 14.0)])
  canvas.draw(canvas_lib.Tube(points, np.array([7.0, 7.0])), 0.0)
  length = np.linalg.norm(points[1] - points[0])
  wanted = np.pi * 7.0**2 * length + 4 / 3 * np.pi * 7.0**3
  assert _volume(canvas) == pytest.approx(wanted, rel=0.01)


def test_a_smooth_tube_passes_through_its_points():
  points = np.array([(0.0, 0.0, 0.0), (10.0, 5.0, 0.0), (12.0, 20.0, 3.0)])
  tube = canvas_lib.smooth_tube(points, (3.0, 2.0, 1.0), pieces=4)
  np.testing.assert_allclose(tube.points[::4], points, atol=1e-9)
  np.testing.assert_allclose(tube.radii[::4], (3.0, 2.0, 1.0))
  assert len(tube.points) == 9


def test_an_edge_is_a_half_at_the_surface():
  canvas = canvas_lib.Canvas((5.0, 5.0, 5.0), 1.0)
  # The half space x > 0.25 mm.
  canvas.paint(canvas.whole.x - 0.25, 0.0)
  np.testing.assert_allclose(
    canvas.hu[0, 0, 3:8], [-1000, -1000, -750, 0, 0], atol=1e-3
  )


def test_only_raise_leaves_brighter_tissue():
  canvas = canvas_lib.Canvas((2.0, 2.0, 2.0), 1.0)
  canvas.hu[0] = 300.0
  canvas.paint(np.full(canvas.hu.shape, 9.0), 40.0, only_raise=True)
  assert (canvas.hu[0] == 300.0).all()
  assert (canvas.hu[1:] == 40.0).all()
