"""The layers of all networks: their names in each format, parts and shapes.

`table` is the one place that knows how a layer is called in the official
Keras 2.2.4 files (and here) and in the PyTorch release; reading and writing
both follow it.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

ENCODER = 'encoder'
DECODER = 'decoder'
HEAD = 'head'

# Weights in Keras' order, and what PyTorch calls them.
BATCH_NORM = {
  'gamma': 'weight',
  'beta': 'bias',
  'moving_mean': 'running_mean',
  'moving_variance': 'running_var',
}
TORCH_WEIGHTS = {'kernel': 'weight', 'bias': 'bias', **BATCH_NORM}

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What decides the layers of a network and their shapes.

  Attributes:
    base_filters: filters of the very first block.
    depth: levels.
    has_decoder: whether there is a decoder.
    skip_connections: whether the decoder sees the skips.
    transposed: whether it upsamples by transposed convolutions.
    output_channels: channels of the restored cube.
    num_words: words C; 0 is no head.
    head_filters: filters of the head's block; 0 is none: the head is a dense
      layer on the embedding.
    head_units: units of the head's hidden dense layer; 0 is none, as in the
      PyTorch release.
  """

  base_filters: int
  depth: int
  has_decoder: bool = False
  skip_connections: bool = True
  transposed: bool = False
  output_channels: int = 1
  num_words: int = 0
  head_filters: int = 0
  head_units: int = 0

  def without(self, parts) -> 'Sizes':
    """Returns the sizes of the network without some of its parts."""
    changes = {}
    if DECODER in parts:
      changes['has_decoder'] = False
    if HEAD in parts:
      changes |= dict.fromkeys(('num_words', 'head_filters', 'head_units'), 0)
    return dataclasses.replace(self, **changes)

  def __str__(self):
    values = dataclasses.asdict(self)
    shown = ('base_filters', 'depth')
    if self.has_decoder:
      shown += ('skip_connections', 'transposed')
    if self.num_words:
      shown += ('num_words', 'head_filters', 'head_units')
    return ', '.join(f'{name} {values[name]}' for name in shown)


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer with weights.

  Attributes:
    name: in the official .h5 and here.
    module: in the PyTorch release; empty where that has no such layer.
    part: ENCODER, DECODER or HEAD.
    shapes: by weight, in Keras' order. Kernels are (x, y, z, in, out),
      transposed ones (x, y, z, out, in), dense ones (in, out).
  """

  name: str
  module: str
  part: str
  shapes: dict[str, Shape]

  def weight_name(self, weight: str) -> str:
    """Returns the name of a weight here."""
    return f'{self.name}/{weight}'

  def torch_name(self, weight: str) -> str:
    """Returns the name of a weight in the PyTorch release."""
    return f'{self.module}.{TORCH_WEIGHTS[weight]}'


def table(sizes: Sizes) -> list[Layer]:
  """Returns the layers of a network in order, encoder, decoder, head."""
  return [*_encoder(sizes), *_decoder(sizes), *_head(sizes)]


def to_torch(array: np.ndarray) -> np.ndarray:
  """Maps a kernel (..., in, out) to (out, in, ...); vectors stay.

  A transposed convolution's (..., out, in) becomes (in, out, ...). Neither
  library mirrors kernels, so there is nothing to flip.
  """
  return np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array


def from_torch(array: np.ndarray) -> np.ndarray:
  """Maps (out, in, ...) to (..., in, out): the inverse of to_torch."""
  return np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array


def _weights(name, module, part, *kernel):
  shapes = {'kernel': kernel, 'bias': kernel[-1:]}
  return Layer(name, module, part, shapes)


def _block(number, module, part, channels, filters) -> Iterator[Layer]:
  name = f'depth_{number}'
  kernel = (3, 3, 3, channels, filters)
  yield _weights(f'{name}_conv', f'{module}.conv1', part, *kernel)
  shapes = dict.fromkeys(BATCH_NORM, (filters,))
  yield Layer(f'{name}_bn', f'{module}.bn1', part, shapes)


def _encoder(sizes) -> Iterator[Layer]:
  channels = 1
  for number in range(2 * sizes.depth):
    level, second = divmod(number, 2)
    filters = sizes.base_filters * 2 ** (level + second)
    # Modules are named for the filters at 32 base filters.
    module = f'down_tr{64 * 2**level}.ops.{second}'
    yield from _block(number, module, ENCODER, channels, filters)
    channels = filters


def _decoder(sizes) -> Iterator[Layer]:
  if not sizes.has_decoder:
    return
  for level in reversed(range(sizes.depth - 1)):
    number = 2 * sizes.depth + 2 * (sizes.depth - 2 - level)
    module = f'up_tr{64 * 2**level}'
    filters = sizes.base_filters * 2 ** (level + 1)
    up = (2, 2, 2, 2 * filters, 2 * filters)
    if sizes.transposed:
      yield _weights(f'depth_{number}_up', f'{module}.up_conv', DECODER, *up)
    channels = 2 * filters + filters * sizes.skip_connections
    for second in range(2):
      path = f'{module}.ops.{second}'
      yield from _block(number + second, path, DECODER, channels, filters)
      channels = filters
  kernel = (1, 1, 1, 2 * sizes.base_filters, sizes.output_channels)
  yield _weights('final_conv', 'out_tr.final_conv', DECODER, *kernel)


def _head(sizes) -> Iterator[Layer]:
  if not sizes.num_words:
    return
  width = sizes.base_filters * 2**sizes.depth
  if sizes.head_filters:
    number = 4 * sizes.depth - 2
    yield from _block(number, 'clc_out', HEAD, width, sizes.head_filters)
    width = sizes.head_filters
  if sizes.head_units:
    yield _weights('cls_fc', '', HEAD, width, sizes.head_units)
    width = sizes.head_units
  # On the embedding itself it is a layer of Keras' first stage alone.
  module = 'clc_out.fc1' if sizes.head_filters else ''
  yield _weights('cls_output', module, HEAD, width, sizes.num_words)
