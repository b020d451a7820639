"""The published Keras networks in NumPy, channels_first, from their weights."""

import numpy as np
from scipy import special


def _conv(features, kernel, bias):
  """Convolves (B, in, X, Y, Z) with (x, y, z, in, out), zero padding."""
  pad = [(side - 1) // 2 for side in kernel.shape[:3]]
  padded = np.pad(features, [(0, 0), (0, 0), *((one, one) for one in pad)])
  x, y, z = features.shape[2:]
  out = np.zeros((features.shape[0], kernel.shape[4], x * y * z))
  for i, j, k in np.ndindex(kernel.shape[:3]):
    shifted = padded[:, :, i : i + x, j : j + y, k : k + z]
    flat = shifted.reshape(*shifted.shape[:2], -1)
    out += kernel[i, j, k].T @ flat
  out += bias[:, None]
  return out.reshape(*out.shape[:2], x, y, z)


class KerasNetwork:
  """Outputs of a network from the weights of its file."""

  def __init__(self, layers: dict[str, list[np.ndarray]]):
    self.layers = {
      name: [np.asarray(one, np.float64) for one in arrays]
      for name, arrays in layers.items()
    }

  def block(self, number, features):
    features = _conv(features, *self.layers[f'depth_{number}_conv'])
    gamma, beta, mean, variance = (
      one[:, None, None, None] for one in self.layers[f'depth_{number}_bn']
    )
    features = gamma * (features - mean) / np.sqrt(variance + 1e-3) + beta
    return np.maximum(features, 0)

  def encode(self, cubes):
    features, skips = cubes, []
    for number in range(8):
      if number and number % 2 == 0:
        skips.append(features)
        b, c, x, y, z = features.shape
        features = features.reshape(b, c, x // 2, 2, y // 2, 2, z // 2, 2)
        features = features.max((3, 5, 7))
      features = self.block(number, features)
    return features, skips

  def decode(self, features, skips, final='final_conv', with_skips=True):
    for number in range(8, 14, 2):
      for axis in (2, 3, 4):
        features = features.repeat(2, axis)
      skip = skips.pop()
      if with_skips:
        features = np.concatenate([features, skip], 1)
      features = self.block(number + 1, self.block(number, features))
    return special.expit(_conv(features, *self.layers[final]))

  def name_words(self, bottleneck):
    features = self.block(14, bottleneck).mean((2, 3, 4))
    kernel, bias = self.layers['cls_fc']
    features = np.maximum(features @ kernel + bias, 0)
    kernel, bias = self.layers['cls_output']
    return special.softmax(features @ kernel + bias, axis=1)

  def outputs(self, cubes, kind: str) -> dict[str, np.ndarray]:
    """Returns what the network of a kind gives.

    Args:
      cubes: float (B, X, Y, Z, 1).
      kind: as in published_files.draw.
    """
    bottleneck, skips = self.encode(np.moveaxis(cubes.astype(np.float64), 4, 1))
    outputs = {'embedding': bottleneck.mean((2, 3, 4))}
    if kind == 'encoder':
      kernel, bias = self.layers['dense_1']
      logits = outputs['embedding'] @ kernel + bias
      return outputs | {'words': special.softmax(logits, axis=1)}
    final = 'conv3d_15' if kind == 'genesis' else 'final_conv'
    restored = self.decode(bottleneck, skips, final, kind != 'v_net')
    outputs['restored'] = np.moveaxis(restored, 1, 4)
    if kind == 'y_net':
      outputs['words'] = self.name_words(bottleneck)
    return outputs


def torch_outputs(state, cubes, batch_statistics: bool = False) -> dict:
  """Returns what the PyTorch release gives, from its state_dict.

  Args:
    state: tensors by key, without prefixes.
    cubes: float (B, X, Y, Z, 1).
    batch_statistics: whether batches are normalised by their own statistics.
  """
  import torch
  from torch.nn import functional

  def block(module, features):
    features = functional.conv3d(
      features,
      state[f'{module}conv1.weight'],
      state[f'{module}conv1.bias'],
      padding=1,
    )
    # Copies, for the statistics of a batch would be added to them.
    statistics = [
      state[f'{module}bn1.running_{one}'].clone() for one in ('mean', 'var')
    ]
    features = functional.batch_norm(
      features,
      *statistics,
      state[f'{module}bn1.weight'],
      state[f'{module}bn1.bias'],
      training=batch_statistics,
      eps=1e-5,
    )
    return functional.relu(features)

  features = torch.from_numpy(np.moveaxis(cubes, 4, 1).copy())
  skips = []
  for level in (64, 128, 256, 512):
    if level > 64:
      skips.append(features)
      features = functional.max_pool3d(features, 2)
    for second in (0, 1):
      features = block(f'down_tr{level}.ops.{second}.', features)
  outputs = {'embedding': features.mean((2, 3, 4))}
  if 'clc_out.fc1.weight' in state:
    pooled = block('clc_out.', features).mean((2, 3, 4))
    logits = functional.linear(
      pooled, state['clc_out.fc1.weight'], state['clc_out.fc1.bias']
    )
    outputs['words'] = functional.softmax(logits, dim=1)
  if 'out_tr.final_conv.weight' in state:
    for level in (256, 128, 64):
      up = functional.conv_transpose3d(
        features,
        state[f'up_tr{level}.up_conv.weight'],
        state[f'up_tr{level}.up_conv.bias'],
        stride=2,
      )
      features = torch.cat([up, skips.pop()], 1)
      for second in (0, 1):
        features = block(f'up_tr{level}.ops.{second}.', features)
    restored = torch.sigmoid(
      functional.conv3d(
        features,
        state['out_tr.final_conv.weight'],
        state['out_tr.final_conv.bias'],
      )
    )
    outputs['restored'] = restored.movedim(1, 4)
  return {name: value.numpy() for name, value in outputs.items()}
