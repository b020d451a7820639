"""Random numbers for a batch, where each cube has a seed of its own.

A number is a function of the cube's seed, the stream (what it is drawn for) and
its place in the stream, and of nothing else: not of the batch, the device or
whether XLA compiles it. TensorFlow's stateless operations take one seed for a
whole tensor, and XLA makes other floats of their bits; so the generator is
here: Threefry-2x32 with 20 rounds (Salmon et al., Parallel random numbers: as
easy as 1, 2, 3, SC 2011), which is 32-bit additions, rotations and exclusive
ors for all cubes at once.
"""

import enum
import math

import numpy as np
import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_KEY_PARITY = np.uint32(0x1BD11BDA)
_GROUPS = 5  # of four rounds each

# A float32 in [0, 1) that times n (n < 2**23) never rounds up to n.
_UNIFORM_BITS = 23


class Stream(enum.IntEnum):
  """What numbers are drawn for; a changed value changes every perturbation."""

  CHOICE = 0
  ELASTIC = 1
  ELASTIC_CHOICE = 2
  INTENSITY = 3
  SHUFFLE_BLOCKS = 4
  SHUFFLE_ORDER = 5
  INPAINT = 6
  OUTPAINT = 7
  FILL = 8
  MIRROR = 9
  CROP = 10


def threefry(key, counter):
  """Encrypts counters with keys (Threefry-2x32, 20 rounds).

  Args:
    key: pair of uint32 tensors.
    counter: pair of uint32 tensors; all four broadcast against each other.

  Returns:
    pair of uint32 tensors, random bits.
  """
  keys = (*key, key[0] ^ key[1] ^ _KEY_PARITY)
  first, second = counter[0] + keys[0], counter[1] + keys[1]
  for group in range(_GROUPS):
    for rotation in _ROTATIONS[group % 2]:
      first += second
      second = first ^ _rotate_left(second, rotation)
    first += keys[(group + 1) % 3]
    second += keys[(group + 2) % 3] + np.uint32(group + 1)
  return first, second


def _rotate_left(bits, places: int):
  return tf.bitwise.left_shift(bits, np.uint32(places)) | (
    tf.bitwise.right_shift(bits, np.uint32(32 - places))
  )


def draw_uniform(seeds, stream: Stream, shape: tuple[int, ...]):
  """Draws numbers uniform in [0, 1), multiples of 2**-23.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    stream: what they are drawn for.
    shape: of the numbers for one cube.

  Returns:
    float32 (B, *shape).
  """
  return _draw_integers(seeds, stream, shape) * 2.0**-_UNIFORM_BITS


def draw_normal(seeds, stream: Stream, shape: tuple[int, ...]):
  """Draws standard normal numbers by the Box-Muller transform.

  Args:
    seeds: int32 (B, 2), one seed for each cube.
    stream: what they are drawn for.
    shape: of the numbers for one cube.

  Returns:
    float32 (B, *shape), of magnitude below 5.8.
  """
  size = math.prod(shape)
  pairs = -(-size // 2)
  integers = _draw_integers(seeds, stream, (2, pairs))
  # The half keeps the logarithm finite.
  radius = tf.sqrt(-2 * tf.math.log((integers[:, 0] + 0.5) * 2**-_UNIFORM_BITS))
  angle = integers[:, 1] * (2 * math.pi * 2.0**-_UNIFORM_BITS)
  normal = tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=1)
  return tf.reshape(normal[:, :size], (-1, *shape))


def _draw_integers(seeds, stream, shape):
  """Returns integers uniform in [0, 2**23), as float32 (B, *shape)."""
  size = math.prod(shape)
  key = tf.bitcast(seeds, tf.uint32)
  places = tf.bitcast(tf.range(-(-size // 2)), tf.uint32)[tf.newaxis]
  bits = threefry(
    (key[:, :1], key[:, 1:]), (places, tf.constant(stream, tf.uint32))
  )
  bits = tf.concat(bits, axis=1)[:, :size]
  bits = tf.bitwise.right_shift(bits, np.uint32(32 - _UNIFORM_BITS))
  return tf.reshape(tf.cast(bits, tf.float32), (-1, *shape))


def to_integers(uniform, smallest, largest):
  """Maps numbers uniform in [0, 1) to integers uniform in a closed interval.

  Args:
    uniform: float32, of draw_uniform.
    smallest: int or int32 that broadcasts, the smallest integer.
    largest: the same, the largest integer, not below `smallest`.

  Returns:
    int32 of the common shape.
  """
  smallest = tf.cast(smallest, tf.int32)
  count = tf.cast(largest - smallest + 1, tf.float32)
  return smallest + tf.cast(tf.floor(uniform * count), tf.int32)
