"""Floating point operations of the Y-Net, counted from the shapes of layers.

Those of convolutions and dense layers; a multiplication and addition are two.
"""

from collections.abc import Iterator
from collections.abc import Sequence

_DEPTH = 4


def count_step(fused: bool, **sizes) -> float:
  """Returns the operations of a training step, per cube.

  Backward takes twice those of forward, but for the first convolution: nobody
  asks for the gradient of the cube.

  Args:
    fused: whether upsampling and convolution are one.
    **sizes: as for `count_layers`.
  """
  layers = list(count_layers(fused, **sizes))
  return 3 * sum(layers) - layers[0]


def count_embedding(**sizes) -> float:
  """Returns the operations of the encoder, per cube."""
  return sum(list(count_layers(True, **sizes))[: 2 * _DEPTH])


def count_layers(
  fused: bool,
  *,
  size: Sequence[int],
  num_words: int,
  base_filters: int,
  head_filters: int,
  head_units: int,
) -> Iterator[float]:
  """Yields the operations forward per cube of each layer.

  Those of the encoder come first, from the cube on.

  Args:
    fused: whether upsampling and convolution are one.
    size: (X, Y, Z), voxels of a cube.
    num_words: words C.
    base_filters: filters of the very first block.
    head_filters: filters of the block between bottleneck and pooling.
    head_units: units of the hidden dense layer.
  """
  x, y, z = size
  channels, skips = 1, []

  def convolution(level, channels, filters, places=27):
    return 2 * x * y * z / 8**level * places * channels * filters

  for level in range(_DEPTH):
    for filters in (base_filters * 2**level, base_filters * 2 ** (level + 1)):
      yield convolution(level, channels, filters)
      channels = filters
    skips.append(channels)
  yield convolution(_DEPTH - 1, channels, head_filters)
  yield 2 * head_filters * head_units
  yield 2 * head_units * num_words
  for level in reversed(range(_DEPTH - 1)):
    filters = skips[level]
    # A voxel sees 2x2x2 of the level below, some of them at several places.
    yield convolution(level, channels, filters, 8 if fused else 27)
    yield convolution(level, filters, filters)
    yield convolution(level, filters, filters)
    channels = filters
  yield convolution(0, channels, 1, places=1)
