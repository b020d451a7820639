"""Convolutions of features whose longest axes come last.

Cubes are (B, X, Y, Z, channels), and kernels are kept as (x, y, z, in, out), as
in the official weights. Inside the networks features are (B, Z, X, Y,
channels): oneDNN works along the last of the three, so it should not be the
shortest. On the deepest level of cubes of 64x64x32 that makes a convolution up
to twice as fast.
"""

import keras
import numpy as np


def to_inner(cubes):
  """Maps (B, X, Y, Z, channels) to (B, Z, X, Y, channels)."""
  return keras.ops.transpose(cubes, (0, 3, 1, 2, 4))


def to_outer(features):
  """Maps (B, Z, X, Y, channels) to (B, X, Y, Z, channels)."""
  return keras.ops.transpose(features, (0, 2, 3, 1, 4))


def convolve(features, kernel, padding: str = 'same'):
  """Convolves features as they are between blocks.

  Args:
    features: float (B, Z, X, Y, in).
    kernel: float (kx, ky, kz, in, out).
    padding: 'same', zeros around the features, or 'valid', none.

  Returns:
    float (B, Z, X, Y, out); Z, X and Y are less where nothing is padded.
  """
  return keras.ops.conv(
    features,
    inner_kernel(kernel),
    padding=padding,
    data_format='channels_last',
  )


def inner_kernel(kernel):
  """Maps a kernel (kx, ky, kz, ., .) to (kz, kx, ky, ., .)."""
  return keras.ops.transpose(kernel, (2, 0, 1, 3, 4))


# Row p: which of the three weights along an axis make weight p of four.
_DOUBLE = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
# The same along all axes at once: (64, 27), from (x, y, z) to (z, x, y).
_DOUBLE_3D = np.einsum('ax,by,cz->cabxyz', *[_DOUBLE] * 3).reshape(64, 27)


def double_kernel(kernel):
  """Returns the transposed kernel that upsamples by 2 and convolves at once.

  Nearest upsampling by 2 followed by a 3x3x3 convolution equals one transposed
  convolution with stride 2: an input voxel reaches each output voxel through
  all kernel places that lie on its two copies per axis. Along one axis
  (w0, w1, w2) becomes (w2, w1 + w2, w0 + w1, w0).

  Args:
    kernel: float (kx, ky, kz, in, out), 3 each, of the convolution.

  Returns:
    float (kz, kx, ky, out, in), 4 each, for a transposed convolution of
    (B, Z, X, Y, in), padding 'same'.
  """
  channels, filters = kernel.shape[3:]
  kernel = keras.ops.swapaxes(kernel, 3, 4)
  # One matrix product: sums of shifted kernels would each be a pass over them.
  doubled = keras.ops.matmul(
    keras.ops.cast(_DOUBLE_3D, kernel.dtype),
    keras.ops.reshape(kernel, (27, filters * channels)),
  )
  return keras.ops.reshape(doubled, (4, 4, 4, filters, channels))
