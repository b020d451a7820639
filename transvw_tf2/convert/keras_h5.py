"""The official weights: HDF5 as Keras 2.2.4 writes it.

Group `/model_weights` of a whole model, or the root where only weights were
saved: attribute `layer_names`; per layer a group with attribute `weight_names`,
the paths of its arrays below the group in the order kernel, bias or gamma,
beta, moving_mean, moving_variance. The official networks are channels_first,
but kernels are (x, y, z, in, out) in either data format.

A file is only read when everything in it lies in it: links and data that lead
elsewhere are refused before they are opened, and so is a file that declares
more than it can hold. Weights that are packed are not read.
"""

import collections
from collections.abc import Sequence
import io
import itertools
import math
import mmap
import re

import h5py
import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import file_size
from transvw_tf2 import h5_arrays
from transvw_tf2 import output_file
from transvw_tf2.convert import layers as layers_lib
from transvw_tf2.convert import network as network_lib
from transvw_tf2.convert import report

_ROOT = 'model_weights'
_LAYERS = 'layer_names'
_WEIGHTS = 'weight_names'
# Bytes; those of a large network have under a tenth of it.
_MAX_NAMES = 2**27
# Where strings lie: signature, version, and size in bytes.
_COLLECTION = re.compile(rb'GCOL\x01\0\0\0(.{8})', re.DOTALL)


def read(path: str) -> network_lib.Source:
  """Reads the weights of a file.

  Args:
    path: an HDF5 file.

  Returns:
    Its tensors, by the names of layers.table.

  Raises:
    errors.UserError: it is cut, not of Keras, or leads out of itself.
  """
  try:
    with h5py.File(path, 'r') as file:
      return _read(file, path)
  except errors.UserError:
    raise
  # h5py raises many kinds for a broken file.
  except Exception as error:
    raise errors.UserError(
      f'{path} cannot be read ({" ".join(str(error).split())[:200]}): wanted a'
      ' whole HDF5 file of Keras weights; download it again'
    ) from error


def _read(file, path) -> network_lib.Source:
  datasets = h5_arrays.find(file, path)
  root = file if _LAYERS in file.attrs else file.get(_ROOT)
  if not isinstance(root, h5py.Group) or _LAYERS not in root.attrs:
    raise errors.UserError(
      f'{path} has no attribute {_LAYERS} at its root or in /{_ROOT}, wanted'
      ' weights or a model saved by Keras 2 (.h5)'
    )
  found = []  # (layer, weight, dataset)
  for layer in _names(root, _LAYERS, path):
    group = root.get(layer)
    if not isinstance(group, h5py.Group) or _WEIGHTS not in group.attrs:
      raise errors.UserError(
        f'{path} names a layer {layer!r} but does not have it: it is damaged'
      )
    weights = _names(group, _WEIGHTS, path)
    for weight, name in zip(_weight_kinds(weights), weights, strict=True):
      dataset = datasets.get(f'{group.name}/{name}')
      if dataset is None:
        raise errors.UserError(
          f'{path} names {layer}/{name} but does not have it: it is damaged'
        )
      found.append((layer, weight, dataset))
  _check_arrays(found, path)
  names = _our_names(found)
  used = {dataset.name for _, _, dataset in found}
  return network_lib.Source(
    path=path,
    tensors=[
      network_lib.Tensor(
        source=_short(dataset.name, root),
        layer=names.get(layer, layer),
        weight=weight,
        array=np.asarray(dataset[()], np.float32),
      )
      for layer, weight, dataset in found
    ],
    ignored=[
      report.left_out(
        name,
        dataset.shape or (),
        'state of the optimizer'
        if name.startswith('/optimizer_weights/')
        else 'named by no layer',
      )
      for name, dataset in datasets.items()
      if name not in used
    ],
  )


def _short(name, root) -> str:
  return name.removeprefix(root.name).lstrip('/')


def _names(group, attribute, path) -> list[str]:
  """Returns an attribute that is a list of names."""
  stored = group.attrs.get_id(attribute)
  file_size.check(path, math.prod(stored.shape) * stored.dtype.itemsize)
  is_text = stored.dtype.kind == 'S'
  if not is_text and h5py.check_string_dtype(stored.dtype):
    # Of any length, as Keras 3 has them.
    _check_strings(path, math.prod(stored.shape))
    is_text = True
  if len(stored.shape) != 1 or not (is_text or not stored.shape[0]):
    raise errors.UserError(
      f'{path}: attribute {attribute} of {group.name} is no list of names,'
      ' wanted weights saved by Keras 2 (.h5)'
    )
  names = [
    name.decode('utf-8') if isinstance(name, bytes) else str(name)
    for name in group.attrs[attribute]
  ]
  if len(set(names)) < len(names):
    raise errors.UserError(
      f'{path}: attribute {attribute} of {group.name} names one twice: it is'
      ' damaged'
    )
  return names


def _check_strings(path, count) -> None:
  """Checks that a list of strings can be read, even if all are the largest.

  Strings of any length lie in collections apart, and all of a list may be one
  of them, which is read for each. HDF5 does not tell their lengths.
  """
  with (
    open(path, 'rb') as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
  ):
    sizes = [
      int.from_bytes(found[1], 'little')
      for found in re.finditer(_COLLECTION, content)
    ]
  if count * max(sizes, default=0) > _MAX_NAMES:
    raise errors.UserError(
      f'{path} has {count} names in up to {max(sizes)} bytes: it is not safe to'
      ' read'
    )


def _weight_kinds(names: Sequence[str]) -> Sequence[str]:
  """Returns what the weights of a layer are, from their order or names."""
  plain = [re.sub(r'(_\d+)?(:\d+)?$', '', one.split('/')[-1]) for one in names]
  if set(plain) <= set(layers_lib.TORCH_WEIGHTS):
    return plain
  kinds = {2: ('kernel', 'bias'), 4: tuple(layers_lib.BATCH_NORM)}
  return kinds.get(len(names), plain)


def _check_arrays(found, path) -> None:
  """Checks that arrays are numbers that take what they declare."""
  for _, _, dataset in found:
    if dataset.dtype.kind != 'f' or dataset.shape is None:
      raise errors.UserError(
        f'{path} has {dataset.name} of type {dataset.dtype}, wanted floating'
        ' point numbers'
      )
    h5_arrays.check_unpacked(dataset, path)


def _our_names(found) -> dict[str, str]:
  """Returns the layers whose names Keras made up, with their names here.

  Transposed convolutions, the final convolution of Models Genesis (conv3d_N)
  and dense layers: in order, where there are as many as the networks have.
  """
  kernels = {
    layer: dataset.shape for layer, kind, dataset in found if kind == 'kernel'
  }

  def made_up(kind, dimensions):
    return [
      layer
      for layer, shape in kernels.items()
      if len(shape) == dimensions and re.fullmatch(rf'{kind}(_\d+)?', layer)
    ]

  ups = made_up('conv3d_transpose', 5)
  first = 2 * (len(ups) + 1)
  named = {up: f'depth_{first + 2 * n}_up' for n, up in enumerate(ups)}
  finals = [
    one for one in made_up('conv3d', 5) if kernels[one][:3] == (1, 1, 1)
  ]
  if len(finals) == 1:
    named[finals[0]] = 'final_conv'
  dense = made_up('dense', 2)
  others = [one for one, shape in kernels.items() if len(shape) == 2]
  if len(others) == 1 and all(
    re.fullmatch(r'depth_\d+_conv', one) for one in kernels.keys() - {*others}
  ):
    dense = others  # an encoder with its classifier, whatever its name
  if len(dense) <= 2:
    named |= zip(reversed(dense), ('cls_output', 'cls_fc'), strict=False)
  # Not where a layer has that name itself.
  return {layer: name for layer, name in named.items() if name not in kernels}


def write(path: str, network: network_lib.Network) -> dict[str, str]:
  """Writes a network as Keras 2.2.4 would have written the official one.

  Layers come in the order that Keras gives them, so that its `load_weights`
  works by order as well as by name; where a decoder's and a head's layer are
  as far from the outputs, the decoder's is first.

  Args:
    path: file to write.
    network: of the Keras kind.

  Returns:
    Name in the file by name here, both of weights.

  Raises:
    errors.UserError: it is the network of the PyTorch release, or the file
      cannot be written.
  """
  if network.is_torch:
    raise errors.UserError(
      f'{path}: the network of the PyTorch release has another head and'
      ' another epsilon, which a file of Keras 2.2.4 cannot say: write .keras'
      ' or .pt'
    )
  sizes = network.sizes
  if sizes.head_filters and not sizes.has_decoder:
    raise errors.UserError(
      f'{path}: no official network has this head without a decoder: write'
      ' .keras'
    )
  targets = {}
  # HDF5 itself may crash on a disk that is full.
  content = io.BytesIO()
  with h5py.File(content, 'w') as file:
    root = file.create_group(_ROOT)
    root.attrs['backend'] = np.bytes_(b'tensorflow')
    root.attrs['keras_version'] = np.bytes_(b'2.2.4')
    layers = _keras_order(sizes)
    root.attrs[_LAYERS] = np.array([layer.encode() for layer, _ in layers])
    for layer, ours in layers:
      group = root.create_group(layer)
      weights = network.weights.get(ours, {})
      names = [f'{layer}/{weight}:0' for weight in weights]
      group.attrs[_WEIGHTS] = np.array([one.encode() for one in names], 'S')
      for name, (weight, array) in zip(names, weights.items(), strict=True):
        group.create_dataset(name, data=array)
        targets[f'{ours}/{weight}'] = f'{layer}/{name}'
  output_file.write(path, content.getbuffer())
  return targets


def _keras_order(sizes: layers_lib.Sizes) -> list[tuple[str, str]]:
  """Returns all layers by their names in Keras, with the names here.

  Keras sorts layers by their distance from the outputs.
  """
  counts = collections.Counter()

  def made_up(kind):
    counts[kind] += 1
    return f'{kind}_{counts[kind]}'

  def block(number):
    names = [f'depth_{number}_{part}' for part in ('conv', 'bn', 'relu')]
    return [(name, name) for name in names]

  trunk = [(made_up('input'), '')]
  for number in range(2 * sizes.depth):
    if number and number % 2 == 0:
      trunk.append((made_up('max_pooling3d'), ''))
    trunk += block(number)
  decoder, head = [], []
  if sizes.has_decoder:
    for number in range(2 * sizes.depth, 4 * sizes.depth - 2):
      if number % 2 == 0:
        kind = 'conv3d_transpose' if sizes.transposed else 'up_sampling3d'
        decoder.append((made_up(kind), f'depth_{number}_up'))
        if sizes.skip_connections:
          decoder.append((made_up('concatenate'), ''))
      decoder += block(number)
    decoder += [('final_conv', 'final_conv'), ('reconst_output', '')]
  if sizes.num_words:
    if sizes.head_filters:
      head += block(4 * sizes.depth - 2)
    head.append((made_up('global_average_pooling3d'), ''))
    names = ('cls_fc', 'cls_output') if sizes.head_units else ('cls_output',)
    head += [(name, name) for name in names]
  branches = itertools.zip_longest(reversed(decoder), reversed(head))
  pairs = list(branches)[::-1]
  return trunk + [layer for pair in pairs for layer in pair if layer]
