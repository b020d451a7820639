"""Writes files in the layouts of the published weights, with small networks.

Nothing here uses the package: weights are drawn, and named by rules written
down a second time.
"""

import collections

import h5py
import numpy as np

WORDS = 3
HEAD_FILTERS = 6
HEAD_UNITS = 7
TORCH_HEAD_FILTERS = 10

_BATCH_NORM = ('gamma', 'beta', 'moving_mean', 'moving_variance')
_TORCH = ('weight', 'bias', 'running_mean', 'running_var')


class Draw:
  """Draws the weights of layers, by name, in Keras' axes."""

  def __init__(self, seed: int = 0):
    self.rng = np.random.default_rng(seed)
    self.layers: dict[str, list[np.ndarray]] = {}

  def conv(self, name, *kernel, transposed=False):
    fan_in = np.prod(kernel) / kernel[-2 if transposed else -1]
    self.layers[name] = [
      self.rng.normal(0, np.sqrt(2 / fan_in), kernel).astype(np.float32),
      self.rng.normal(0, 0.1, kernel[-1]).astype(np.float32),
    ]

  def block(self, number, channels, filters):
    self.conv(f'depth_{number}_conv', 3, 3, 3, channels, filters)
    self.layers[f'depth_{number}_bn'] = [
      self.rng.uniform(0.8, 1.2, filters).astype(np.float32),
      self.rng.normal(0, 0.1, filters).astype(np.float32),
      self.rng.normal(0, 0.1, filters).astype(np.float32),
      self.rng.uniform(0.5, 1.5, filters).astype(np.float32),
    ]

  def encoder(self, base, depth=4):
    channels = 1
    for number in range(2 * depth):
      filters = base * 2 ** ((number + 1) // 2)
      self.block(number, channels, filters)
      channels = filters

  def decoder(self, base, depth=4, skips=True, transposed=False, final=''):
    for number in range(2 * depth, 4 * depth - 2, 2):
      filters = base * 2 ** (depth - 1 - (number - 2 * depth) // 2)
      if transposed:
        sides = (2, 2, 2, 2 * filters, 2 * filters)
        self.conv(f'depth_{number}_up', *sides, transposed=True)
      self.block(number, (3 if skips else 2) * filters, filters)
      self.block(number + 1, filters, filters)
    self.conv(final or 'final_conv', 1, 1, 1, 2 * base, 1)


def draw(kind: str, base: int = 2, seed: int = 0, **sizes) -> dict:
  """Returns the weights of a published network, by layer.

  Args:
    kind: 'y_net', 'u_net', 'v_net', 'genesis', 'encoder' of Keras; 'torch',
      'torch_u_net', 'torch_words' of PyTorch.
    base: filters of the first block.
    seed: of the weights.
    **sizes: words, head_filters, head_units where they are not small.
  """
  made = Draw(seed)
  words = sizes.get('words', WORDS)
  torch = kind.startswith('torch')
  made.encoder(base)
  if kind not in ('encoder', 'torch_words'):
    made.decoder(
      base,
      skips=kind != 'v_net',
      transposed=torch,
      final='conv3d_15' if kind == 'genesis' else '',
    )
  bottleneck = 16 * base
  if kind == 'y_net':
    filters = sizes.get('head_filters', HEAD_FILTERS)
    units = sizes.get('head_units', HEAD_UNITS)
    made.block(14, bottleneck, filters)
    made.conv('cls_fc', filters, units)
    made.conv('cls_output', units, words)
  elif kind in ('torch', 'torch_words'):
    filters = sizes.get('head_filters', TORCH_HEAD_FILTERS)
    made.block(14, bottleneck, filters)
    made.conv('cls_output', filters, words)
  elif kind == 'encoder':
    made.conv('dense_1', bottleneck, words)
  return made.layers


def write_h5(path, layers: dict, whole: bool = True, suffixes=()) -> None:
  """Writes weights as Keras 2.2.4.

  Args:
    path: file to write.
    layers: from `draw`.
    whole: whether as a whole model, with a configuration and an optimizer.
    suffixes: layers whose weights carry another name than the layer.
  """
  with h5py.File(path, 'w') as file:
    root = file
    if whole:
      file.attrs['keras_version'] = b'2.2.4'
      file.attrs['backend'] = b'tensorflow'
      file.attrs['model_config'] = b'{"class_name": "Model", "config": {}}'
      file.attrs['training_config'] = b'{}'
      root = file.create_group('model_weights')
      write_optimizer(file, layers)
    names = ['input_1']
    for name in layers:
      names.append(name)
      if name.endswith('_bn'):
        names.append(name.replace('_bn', '_relu'))
    root.attrs['layer_names'] = np.array([name.encode() for name in names])
    root.attrs['backend'] = b'tensorflow'
    root.attrs['keras_version'] = b'2.2.4'
    for name in names:
      group = root.create_group(name)
      arrays = layers.get(name, [])
      kinds = _BATCH_NORM if len(arrays) == 4 else ('kernel', 'bias')
      scope = f'{name}_2' if name in suffixes else name
      weights = [f'{scope}/{kind}:0' for kind in kinds[: len(arrays)]]
      # Without weights an empty list of floats, as Keras writes it.
      group.attrs['weight_names'] = np.array([w.encode() for w in weights])
      for weight, array in zip(weights, arrays, strict=True):
        group.create_dataset(weight, data=array)


def write_optimizer(file, layers):
  group = file.create_group('optimizer_weights')
  names = ['Adam/iterations:0', 'training/Adam/Variable:0']
  group.attrs['weight_names'] = np.array([name.encode() for name in names])
  group.create_dataset(names[0], data=np.int64(7))
  first = next(iter(layers.values()))[0]
  group.create_dataset(names[1], data=np.zeros_like(first))


def read_h5(path) -> dict[str, list[np.ndarray]]:
  """Returns the weights of a file by layer, as Keras would find them."""
  with h5py.File(path) as file:
    root = file.get('model_weights', file)
    found = {}
    for layer in root.attrs['layer_names']:
      group = root[layer]
      arrays = [group[weight][()] for weight in group.attrs['weight_names']]
      if arrays:
        found[layer.decode()] = arrays
    return found


def torch_keys(layers: dict) -> dict[str, tuple[str, int]]:
  """Returns layer and place of its weight, by key of the PyTorch release."""
  modules = {}
  for number in range(8):
    modules[f'depth_{number}'] = (
      f'down_tr{(64, 128, 256, 512)[number // 2]}.ops.{number % 2}.'
    )
  for number in range(8, 14):
    level = (256, 128, 64)[(number - 8) // 2]
    modules[f'depth_{number}'] = f'up_tr{level}.ops.{number % 2}.'
  modules['depth_14'] = 'clc_out.'
  keys = {}
  for layer, arrays in layers.items():
    block, _, part = layer.rpartition('_')
    if part == 'up':
      module = modules[block].partition('.')[0] + '.up_conv'
    elif layer == 'final_conv':
      module = 'out_tr.final_conv'
    elif layer == 'cls_output':
      module = 'clc_out.fc1'
    else:
      module = f'{modules[block]}{part}1'
    for place, weight in zip(range(len(arrays)), _TORCH, strict=False):
      keys[f'{module}.{weight}'] = (layer, place)
  return keys


def torch_state(layers: dict, prefix: str = ''):
  """Returns the state_dict of the PyTorch release."""
  import torch

  state = collections.OrderedDict()
  for key, (layer, place) in torch_keys(layers).items():
    array = layers[layer][place]
    if array.ndim > 1:
      # The last two axes come first, the last of all at the very front.
      order = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
      array = np.ascontiguousarray(array.transpose(order))
    state[prefix + key] = torch.from_numpy(array)
    if key.endswith('running_var'):
      counter = key.replace('running_var', 'num_batches_tracked')
      state[prefix + counter] = torch.tensor(12)
  return state


def write_pt(path, layers: dict, prefix: str = '', more=(), **changes) -> None:
  """Writes a checkpoint as the PyTorch release, in the old format.

  Args:
    path: file to write.
    layers: from `draw`.
    prefix: of all keys.
    more: other tensors of the state_dict.
    **changes: what the checkpoint holds besides.
  """
  import torch

  state = torch_state(layers, prefix)
  state.update({prefix + name: torch.ones(2, 3) for name in more})
  first = next(iter(state.values()))
  checkpoint = {
    'epoch': 3,
    'state_dict': state,
    'optimizer_state_dict': {
      'state': {0: {'step': 5, 'exp_avg': torch.zeros_like(first)}},
      'param_groups': [{'lr': 0.001, 'params': [0]}],
    },
    'num_epoch_no_improvement': 0,
    'best_loss': np.float64(0.25),
    'best_acc': np.float64(0.5),
  }
  torch.save(checkpoint | changes, path, _use_new_zipfile_serialization=False)
