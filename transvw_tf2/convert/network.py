"""Makes a network of what a file holds: all of it, or an error.

The sizes of the network follow from the shapes in the file. Nothing as large as
a shape in a file is made before every shape was compared with the table.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import statistics

import keras
import numpy as np

from transvw_tf2 import errors
from transvw_tf2.convert import layers as layers_lib
from transvw_tf2.convert import report
from transvw_tf2.models import blocks
from transvw_tf2.models import torch_variant
from transvw_tf2.models import unet3d
from transvw_tf2.models import visual_word_net
from transvw_tf2.models import word_classifier

# Of batch normalisation in Keras; PyTorch's is torch_variant.EPSILON.
KERAS_EPSILON = 1e-3
MAY_BE_MISSING = (layers_lib.HEAD, layers_lib.DECODER)
_NAMED_IN_ERRORS = 6
# Of a file that could name any number of layers.
_MAX_DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A weight as a file has it.

  Attributes:
    source: its name in the file.
    layer: the layer it belongs to, named as in layers.table.
    weight: kernel, bias, gamma, beta, moving_mean or moving_variance.
    array: its values, float32, axes as Keras has them.
  """

  source: str
  layer: str
  weight: str
  array: np.ndarray

  @property
  def name(self) -> str:
    return f'{self.layer}/{self.weight}'


@dataclasses.dataclass(frozen=True)
class Source:
  """What a file holds.

  Attributes:
    path: the file.
    tensors: its weights.
    ignored: what else is in it, as rows of the report.
    epsilon: of its batch normalisation.
    notes: what a user has to know about it.
    model: the network itself where the file has one of ours.
    batch_statistics: whether each batch is normalised by its own statistics in
      evaluation too; see torch_variant.
  """

  path: str
  tensors: Sequence[Tensor]
  ignored: Sequence[report.Row] = ()
  epsilon: float = KERAS_EPSILON
  notes: Sequence[str] = ()
  model: keras.Model | None = None
  batch_statistics: bool = False

  @property
  def is_torch(self) -> bool:
    """Whether this is the network of the PyTorch release."""
    return self.epsilon == torch_variant.EPSILON


@dataclasses.dataclass(frozen=True)
class Network:
  """A whole network: sizes, and weights by layer and weight.

  Attributes:
    sizes: of the network.
    epsilon: of its batch normalisation.
    weights: float32 arrays, axes as Keras has them, by layer, in its order.
    origins: name in the file each weight came from, by 'layer/weight'.
    left_out: rows of the report for all else in the file.
    notes: what a user has to know about it.
    batch_statistics: as in Source.
  """

  sizes: layers_lib.Sizes
  epsilon: float
  weights: Mapping[str, Mapping[str, np.ndarray]]
  origins: Mapping[str, str]
  left_out: Sequence[report.Row]
  notes: Sequence[str]
  batch_statistics: bool

  @property
  def is_torch(self) -> bool:
    """Whether this is the network of the PyTorch release."""
    return self.epsilon == torch_variant.EPSILON


def fit(source: Source, allow_missing: Collection[str] = ()) -> Network:
  """Matches what a file holds with the layers of a network.

  Args:
    source: from one of the readers.
    allow_missing: parts ('head', 'decoder') that need not be whole; such a part
      is left out of the network as a whole.

  Raises:
    errors.UserError: a tensor is missing, has another shape than its neighbours
      ask for, is not finite, or belongs to no layer.
  """
  found = by_name(source)
  sizes = _best_sizes(source, found)
  if sizes is None:
    raise _error(
      source, 'has no layers depth_0_conv, depth_1_conv, .. of an encoder'
    )
  rows = layers_lib.table(sizes)
  misfits = _misfits(source, found, rows, allow_missing)
  dropped = _check_complete(source, found, sizes, allow_missing, misfits)
  sizes = sizes.without(dropped)
  weights, origins = {}, {}
  for row in layers_lib.table(sizes):
    tensors = {weight: found[row.weight_name(weight)] for weight in row.shapes}
    weights[row.name] = {key: one.array for key, one in tensors.items()}
    origins |= {one.name: one.source for one in tensors.values()}
  parts = {row.name: row.part for row in rows}
  left_out = [
    report.left_out(
      tensor.source,
      tensor.array.shape,
      f'the {parts[tensor.layer]} is not whole{misfits.get(tensor.name, "")}'
      if parts.get(tensor.layer) in dropped
      else 'belongs to no layer of the network',
    )
    for tensor in source.tensors
    if tensor.name not in origins
  ]
  return Network(
    sizes=sizes,
    epsilon=source.epsilon,
    weights=weights,
    origins=origins,
    left_out=[*left_out, *source.ignored],
    notes=source.notes,
    batch_statistics=source.batch_statistics,
  )


def by_name(source: Source) -> dict[str, Tensor]:
  """Returns the tensors of a file by 'layer/weight'.

  Raises:
    errors.UserError: two have one name, or a number is not finite.
  """
  found = {}
  for tensor in source.tensors:
    if tensor.name in found:
      raise _error(source, f'has two tensors {tensor.name}')
    if not np.all(np.isfinite(tensor.array)):
      raise _error(source, f'has NaN or infinity in {tensor.source}')
    found[tensor.name] = tensor
  return found


def _misfits(source, found, rows, allow_missing) -> dict[str, str]:
  """Returns what is wrong with tensors of parts that may be left out, by name.

  Raises:
    errors.UserError: a tensor of another part has a wrong shape.
  """
  wrong = [
    (row.part, tensor, shape)
    for row in rows
    for weight, shape in row.shapes.items()
    if (tensor := found.get(row.weight_name(weight)))
    and tensor.array.shape != shape
  ]
  parts = {part for part, _, _ in wrong}
  if not parts <= set(allow_missing):
    text = _some(
      f'{tensor.source} {tensor.array.shape} where {shape} is wanted'
      for _, tensor, shape in wrong
    )
    raise _error(source, f'has {text}', _hint(parts))
  return {
    tensor.name: f', for {shape} is wanted here' for _, tensor, shape in wrong
  }


def _check_complete(source, found, sizes, allow_missing, misfits) -> set[str]:
  """Returns the parts that are not whole, all of them allowed to be."""
  wanted = {
    row.weight_name(weight): (row, weight)
    for row in layers_lib.table(sizes)
    for weight in row.shapes
  }
  fitting = found.keys() - misfits.keys()
  lacking = [wanted[name] for name in wanted if name not in fitting]
  unknown = [found[name] for name in found if name not in wanted]
  parts = {row.part for row, _ in lacking}
  if not parts <= set(allow_missing):
    names = [
      row.torch_name(weight) if source.is_torch else row.weight_name(weight)
      for row, weight in lacking
    ]
    text = f'lacks {_some(names)}'
    if unknown:
      text += f', but has {_some(one.source for one in unknown)}'
    raise _error(source, text, _hint(parts))
  # What stands where a part is missing goes with it, and so does a head of
  # another kind: dense layers of any name.
  if layers_lib.HEAD in allow_missing:
    layers = {row.name for row, _ in wanted.values()}
    dense = {one.layer for one in unknown if one.array.ndim == 2} - layers
    unknown = [one for one in unknown if one.layer not in dense]
  if unknown and not parts:
    names = _some(one.source for one in unknown)
    raise _error(source, f'has {names}, of no layer of the network ({sizes})')
  return parts


def build(network: Network) -> keras.Model:
  """Returns the Keras model of a network, with its weights.

  Raises:
    errors.UserError: there is no such model in this package.
  """
  sizes = network.sizes
  common = {'base_filters': sizes.base_filters, 'depth': sizes.depth}
  head = {
    'head_filters': sizes.head_filters,
    'head_units': sizes.head_units,
  }
  decoder = {
    'skip_connections': sizes.skip_connections,
    'upsampling': blocks.TRANSPOSED if sizes.transposed else blocks.NEAREST,
    # The same weights and result in less time.
    'fused_upsampling': not sizes.transposed,
  }
  if (
    network.is_torch
    or network.batch_statistics
    or not (sizes.has_decoder or sizes.num_words)
  ):
    model = _build_variant(network)
  elif not sizes.has_decoder:
    if sizes.head_filters:
      model = _build_variant(network)
    else:
      model = word_classifier.WordClassifier(sizes.num_words, **common)
  elif sizes.num_words:
    if sizes.output_channels != 1:
      raise _no_model(
        f'of Keras that names words and restores {sizes.output_channels}'
        ' channels'
      )
    model = visual_word_net.VisualWordNet(
      sizes.num_words, **common, **head, **decoder
    )
  else:
    model = unet3d.UNet3D(
      output_channels=sizes.output_channels, **common, **decoder
    )
  model.build((None, None, None, None, 1))
  for name, layer in blocks.weight_layers(model).items():
    layer.set_weights(list(network.weights[name].values()))
  return model


def _no_model(what: str) -> errors.UserError:
  return errors.UserError(
    f'a network {what} is none of this package: it can be converted to .h5 or'
    ' .pt, but neither to .keras nor loaded'
  )


def _build_variant(network):
  sizes = network.sizes
  if sizes.has_decoder and not (sizes.skip_connections and sizes.transposed):
    raise _no_model(
      'with batch statistics or of PyTorch, without skip connections or'
      ' transposed upsampling,'
    )
  return torch_variant.TorchVisualWordNet(
    num_words=sizes.num_words or None,
    base_filters=sizes.base_filters,
    depth=sizes.depth,
    has_decoder=sizes.has_decoder,
    output_channels=sizes.output_channels,
    head_filters=sizes.head_filters or 1024,
    head_units=sizes.head_units or None,
    epsilon=network.epsilon,
    batch_statistics=network.batch_statistics,
  )


def from_model(model: keras.Model, path: str) -> Source:
  """Returns what one of our networks holds.

  Args:
    model: built.
    path: where it is from, for messages.

  Raises:
    errors.UserError: it is no network of this package.
  """
  if not hasattr(model, 'parts'):
    raise errors.UserError(
      f'{path} holds a {type(model).__name__}, wanted a network of'
      ' transvw_tf2.models'
    )
  tensors, epsilon = [], KERAS_EPSILON
  for name, layer in blocks.weight_layers(model).items():
    for variable in layer.weights:
      weight = variable.name
      array = variable.numpy().astype(np.float32)
      tensors.append(Tensor(f'{name}/{weight}', name, weight, array))
    epsilon = getattr(layer, 'epsilon', epsilon)
  return Source(
    path=path,
    tensors=tensors,
    epsilon=epsilon,
    model=model,
    batch_statistics=getattr(model, 'batch_statistics', False),
  )


def _best_sizes(source, found) -> layers_lib.Sizes | None:
  """Returns the sizes whose table has the most tensors in common with a file.

  A wrong or missing layer then stands out, instead of turning the rest wrong.
  """
  shapes = {name: tensor.array.shape for name, tensor in found.items()}
  count = len({tensor.layer for tensor in found.values()})
  bases = {
    _filters(shapes, f'depth_{n}_conv') >> n // 2 + n % 2 for n in (0, 1, 2)
  }
  best, most = None, 0
  for base, depth in itertools.product(
    sorted(bases - {0}), range(2, min(count // 2, _MAX_DEPTH) + 1)
  ):
    sizes = _sizes(source, shapes, base, depth)
    agreeing = sum(
      shapes.get(row.weight_name(weight)) == shape
      for row in layers_lib.table(sizes)
      for weight, shape in row.shapes.items()
    )
    if agreeing > most:
      best, most = sizes, agreeing
  return best


def _sizes(source, shapes, base, depth) -> layers_lib.Sizes:
  """Returns the sizes of the network in a file, if its depth is `depth`."""
  whole = layers_lib.Sizes(
    *(base, depth), has_decoder=True, transposed=True, num_words=1
  )
  has_decoder = any(
    row.weight_name(weight) in shapes
    for row in layers_lib.table(whole)
    for weight in row.shapes
    if row.part == layers_lib.DECODER
  )
  up = f'depth_{2 * depth}'
  # Without skips the decoder's first block takes the bottleneck alone.
  channels = _channels(shapes, f'{up}_conv')
  sizes = layers_lib.Sizes(
    base_filters=base,
    depth=depth,
    has_decoder=has_decoder,
    skip_connections=channels != base * 2**depth,
    transposed=source.is_torch
    or any(
      f'depth_{number}_up/kernel' in shapes
      for number in range(2 * depth, 4 * depth - 2, 2)
    ),
    output_channels=_filters(shapes, 'final_conv') or 1,
  )
  block = f'depth_{4 * depth - 2}'
  has_block = any(name.startswith((f'{block}_', 'cls_fc')) for name in shapes)
  has_output = any(name.startswith('cls_output/') for name in shapes)
  # Of the published networks these alone have no decoder: PyTorch's with a
  # head, and Keras' encoder with a dense layer. Ours are whole as they are.
  stands_alone = has_output if not has_block else source.is_torch
  if not stands_alone and source.model is None:
    sizes = dataclasses.replace(sizes, has_decoder=True)
  if not (has_block or has_output):
    return sizes
  # A missing or wrong layer is told from its neighbours.
  conv, fc, output = f'{block}_conv', 'cls_fc', 'cls_output'
  after = _channels(shapes, output)
  head = {'num_words': _agreed(*_filters_twice(shapes, output))}
  if source.is_torch:
    head['head_filters'] = _agreed(*_filters_twice(shapes, conv), after)
  elif has_block or sizes.has_decoder:
    inner = _channels(shapes, fc)
    head['head_filters'] = _agreed(*_filters_twice(shapes, conv), inner)
    head['head_units'] = _agreed(*_filters_twice(shapes, fc), after)
  return dataclasses.replace(sizes, **head)


def _agreed(*numbers: int) -> int:
  """Returns what most say, where 0 is nothing; 1 where nothing is said."""
  return statistics.mode([number for number in numbers if number] or [1])


def _filters(shapes, layer) -> int:
  return (*(0,), *shapes.get(f'{layer}/kernel', ()))[-1]


def _filters_twice(shapes, layer) -> tuple[int, int]:
  """Returns the filters of a layer by its kernel and by its bias."""
  return _filters(shapes, layer), (*(0,), *shapes.get(f'{layer}/bias', ()))[-1]


def _channels(shapes, layer) -> int:
  return (*(0, 0), *shapes.get(f'{layer}/kernel', ()))[-2]


def _error(source, text, hint='') -> errors.UserError:
  return errors.UserError(
    f'{source.path} {text}: nothing was converted; wanted a whole network of'
    f' TransVW or Models Genesis{hint}'
  )


def _hint(parts) -> str:
  if not parts <= set(MAY_BE_MISSING):
    return ''
  return f'; --allow_missing {",".join(sorted(parts))} would convert the rest'


def _some(names) -> str:
  names = list(names)
  more = len(names) - _NAMED_IN_ERRORS
  rest = f' and {more} more' if more > 0 else ''
  return ', '.join(names[:_NAMED_IN_ERRORS]) + rest
