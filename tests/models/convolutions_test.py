"""Axes and kernels against NumPy and SciPy."""

import keras
import numpy as np
from scipy import ndimage
import tensorflow as tf

from transvw_tf2.models import convolutions


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_axes_there_and_back():
  cubes = _normal(2, 3, 4, 5, 1)
  inner = convolutions.to_inner(cubes)
  assert inner.shape == (2, 5, 3, 4, 1)
  np.testing.assert_array_equal(inner[1, 4, 2, 3], cubes[1, 2, 3, 4])
  np.testing.assert_array_equal(convolutions.to_outer(inner), cubes)


def test_convolve_equals_scipy():
  cubes, kernel = _normal(1, 4, 6, 5, 1), _normal(3, 3, 3, 1, 1, seed=1)
  got = convolutions.convolve(convolutions.to_inner(cubes), kernel)
  want = ndimage.correlate(cubes[0, ..., 0], kernel[..., 0, 0], mode='constant')
  got = convolutions.to_outer(got)[0, ..., 0]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_convolve_inside_dataset_map():
  features, kernel = _normal(2, 3, 4, 5, 2), _normal(3, 3, 3, 2, 3, seed=1)
  want = convolutions.convolve(features, kernel)
  dataset = tf.data.Dataset.from_tensors((features, kernel))
  got = next(iter(dataset.map(convolutions.convolve)))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_double_kernel_along_one_axis():
  kernel = np.zeros((3, 3, 3, 1, 1), np.float32)
  kernel[:, 1, 1, 0, 0] = [1, 10, 100]
  got = convolutions.double_kernel(keras.ops.convert_to_tensor(kernel)).numpy()
  assert got.shape == (4, 4, 4, 1, 1)
  # A centre weight reaches both copies of a voxel, places 1 and 2. The axis x
  # has come second.
  np.testing.assert_array_equal(got[1, :, 2, 0, 0], [100, 110, 11, 1])
  assert got.sum() == 8 * kernel.sum()


def test_double_kernel_adds_up_a_box():
  rng = np.random.default_rng(4)
  kernel = rng.normal(size=(3, 3, 3, 2, 5)).astype(np.float32)
  got = convolutions.double_kernel(keras.ops.convert_to_tensor(kernel)).numpy()
  flipped = np.pad(kernel[::-1, ::-1, ::-1], [(1, 1)] * 3 + [(0, 0)] * 2)
  want = np.zeros((4, 4, 4, 2, 5))
  for x, y, z in np.ndindex(2, 2, 2):
    want += flipped[x : x + 4, y : y + 4, z : z + 4]
  np.testing.assert_allclose(
    got, want.transpose(2, 0, 1, 4, 3), rtol=1e-5, atol=1e-6
  )
