"""The Y-Net and its training step in PyTorch, as one would write them there.

Needs PyTorch alone, so that it also runs where this project does not. Modules
are named as the layers of transvw_tf2.models, so weights carry over by name.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import fusion


class ConvBlock(nn.Sequential):
  """3x3x3 convolution with bias, batch normalisation and ReLU."""

  def __init__(self, channels: int, filters: int, number: int):
    super().__init__()
    self.add_module(
      f'depth_{number}_conv', nn.Conv3d(channels, filters, 3, padding='same')
    )
    self.add_module(
      f'depth_{number}_bn', nn.BatchNorm3d(filters, eps=1e-3, momentum=0.01)
    )
    self.add_module(f'depth_{number}_relu', nn.ReLU(inplace=True))


class VisualWordNet(nn.Module):
  """The network of transvw_tf2.models.visual_word_net.VisualWordNet."""

  def __init__(
    self,
    num_words: int,
    base_filters: int = 32,
    depth: int = 4,
    head_filters: int = 512,
    head_units: int = 1024,
  ):
    """Initialises the network.

    Args:
      num_words: words C.
      base_filters: filters of the very first block.
      depth: levels.
      head_filters: filters of the block between bottleneck and pooling.
      head_units: units of the hidden linear layer.
    """
    super().__init__()
    channels, number, skips = 1, 0, []
    self.down = nn.ModuleList()
    for level in range(depth):
      low, high = base_filters * 2**level, base_filters * 2 ** (level + 1)
      self.down.append(
        nn.Sequential(
          ConvBlock(channels, low, number), ConvBlock(low, high, number + 1)
        )
      )
      channels = high
      skips.append(high)
      number += 2
    bottleneck = skips.pop()
    self.up = nn.ModuleList()
    for skip in reversed(skips):
      self.up.append(
        nn.Sequential(
          ConvBlock(channels + skip, skip, number),
          ConvBlock(skip, skip, number + 1),
        )
      )
      channels = skip
      number += 2
    self.pool = nn.MaxPool3d(2)
    self.upsample = nn.Upsample(scale_factor=2, mode='nearest')
    self.final_conv = nn.Conv3d(channels, 1, 1)
    self.head_block = ConvBlock(bottleneck, head_filters, number)
    self.cls_fc = nn.Linear(head_filters, head_units)
    self.cls_output = nn.Linear(head_units, num_words)

  def forward(self, cubes):
    """Restores and names cubes.

    Args:
      cubes: float32 (B, 1, X, Y, Z) in [0, 1].

    Returns:
      Restored cubes in [0, 1], the same shape, and logits of the words (B, C).
    """
    features, skips = cubes, []
    for level, blocks in enumerate(self.down):
      if level:
        skips.append(features)
        features = self.pool(features)
      features = blocks(features)
    pooled = self.head_block(features).mean(dim=(2, 3, 4))
    logits = self.cls_output(functional.relu(self.cls_fc(pooled)))
    for blocks in self.up:
      joined = torch.cat([self.upsample(features), skips.pop()], dim=1)
      features = blocks(joined)
    return torch.sigmoid(self.final_conv(features).float()), logits


def load_weights(model: nn.Module, weights: dict) -> None:
  """Copies the weights of a TensorFlow network of the same sizes.

  Args:
    model: a VisualWordNet.
    weights: by layer name, float arrays in the order of Keras: kernel, bias;
      or gamma, beta, moving_mean, moving_variance.

  Raises:
    KeyError: a layer of the model is not among them.
  """
  for path, module in model.named_modules():
    if isinstance(module, nn.BatchNorm3d):
      names = ('weight', 'bias', 'running_mean', 'running_var')
    elif isinstance(module, nn.Conv3d | nn.Linear):
      names = ('weight', 'bias')
    else:
      continue
    arrays = weights[path.rpartition('.')[2]]
    for name, array in zip(names, arrays, strict=True):
      tensor = torch.as_tensor(array)
      if tensor.ndim > 1:  # (k, k, k, in, out) or (in, out)
        tensor = tensor.movedim((-1, -2), (0, 1))
      with torch.no_grad():
        getattr(module, name).copy_(tensor)


class Encoder(nn.Module):
  """What embeds in a VisualWordNet, batch norm fused into the convolutions."""

  def __init__(self, weights: dict, base_filters: int = 32, depth: int = 4):
    """Initialises the encoder, which does not train.

    Args:
      weights: see `load_weights`.
      base_filters: filters of the very first block.
      depth: levels.
    """
    super().__init__()
    layers, channels = [], 1
    for number in range(2 * depth):
      filters = base_filters * 2 ** (number // 2 + number % 2)
      block = ConvBlock(channels, filters, number)
      load_weights(block, weights)
      convolution, norm, relu = block.eval()
      if number and number % 2 == 0:
        layers.append(nn.MaxPool3d(2))
      layers += [fusion.fuse_conv_bn_eval(convolution, norm), relu]
      channels = filters
    self.layers = nn.Sequential(*layers)

  def forward(self, cubes):
    """Maps (B, 1, X, Y, Z) in [0, 1] to float32 (B, embedding size)."""
    return self.layers(cubes).mean(dim=(2, 3, 4), dtype=torch.float32)


class Embedder:
  """Embeds the cubes of a scan with an Encoder."""

  def __init__(
    self,
    weights: dict,
    *,
    base_filters: int = 32,
    axes=(0, 1, 2),
    bfloat16: bool = False,
    compiled: bool = False,
  ):
    """Initialises the embedder.

    Args:
      weights: see `load_weights`.
      base_filters: of the encoder.
      axes: order of x, y and z within it.
      bfloat16: whether weights and activations are.
      compiled: whether torch.compile is applied.
    """
    encoder = Encoder(weights, base_filters).eval()
    encoder.to(memory_format=torch.channels_last_3d)
    self._dtype = torch.bfloat16 if bfloat16 else torch.float32
    encoder.to(self._dtype)
    for module in encoder.modules():
      if isinstance(module, nn.Conv3d):
        turned = module.weight.permute(0, 1, *(2 + axis for axis in axes))
        module.weight.data = turned.contiguous(
          memory_format=torch.channels_last_3d
        )
    self._axes = axes
    self._encoder = torch.compile(encoder) if compiled else encoder

  @torch.inference_mode()
  def embed_scan(self, scan, places, cube, batch: int):
    """Returns float32 (N, embedding size).

    Args:
      scan: float32 [x, y, z] in [0, 1].
      places: int (N, 3), lower corners of cubes.
      cube: voxels of a cube along x, y and z.
      batch: cubes per call.
    """
    scan = scan.to(self._dtype).permute(self._axes)
    order = [[place[axis] for axis in self._axes] for place in places.tolist()]
    x, y, z = (cube[axis] for axis in self._axes)
    rows = []
    for start in range(0, len(order), batch):
      cubes = torch.stack(
        [
          scan[i : i + x, j : j + y, k : k + z]
          for i, j, k in order[start : start + batch]
        ]
      )
      cubes = cubes[:, None].contiguous(memory_format=torch.channels_last_3d)
      rows.append(self._encoder(cubes))
    return torch.cat(rows)


class TrainStep:
  """Forward, loss, backward and Adam; the loss is MSE + 0.01 cross-entropy."""

  def __init__(
    self,
    model: nn.Module,
    *,
    bfloat16: bool = False,
    compiled: bool = False,
    learning_rate: float = 1e-3,
  ):
    """Initialises the step; the model moves to channels_last_3d.

    Args:
      model: a VisualWordNet on its device.
      bfloat16: whether autocast computes in bfloat16.
      compiled: whether torch.compile is applied.
      learning_rate: of Adam.
    """
    self.model = model.train().to(memory_format=torch.channels_last_3d)
    self._device = next(model.parameters()).device.type
    self._bfloat16 = bfloat16
    self._loss = torch.compile(self.loss) if compiled else self.loss
    self._optimizer = torch.optim.Adam(
      model.parameters(), lr=learning_rate, eps=1e-7, fused=True
    )

  def loss(self, inputs, cubes, words):
    """Returns the loss, a float32 scalar.

    Args:
      inputs: float32 (B, 1, X, Y, Z) in [0, 1], what the network sees.
      cubes: the same shape, what it is to restore.
      words: int64 (B,).
    """
    with self._autocast():
      restored, logits = self.model(inputs)
    return functional.mse_loss(restored, cubes) + 0.01 * (
      functional.cross_entropy(logits.float(), words)
    )

  def __call__(self, inputs, cubes, words):
    """Updates the weights once and returns the loss; see `loss`."""
    self._optimizer.zero_grad(set_to_none=True)
    loss = self._loss(inputs, cubes, words)
    loss.backward()
    self._optimizer.step()
    return loss.detach()

  def _autocast(self):
    if not self._bfloat16:
      return contextlib.nullcontext()
    return torch.autocast(self._device, dtype=torch.bfloat16)


def draw_batch(batch: int, shape, num_words: int, device='cpu'):
  """Returns random inputs, cubes and words for a TrainStep.

  Args:
    batch: cubes.
    shape: (X, Y, Z), voxels of a cube.
    num_words: words C.
    device: where they are put.
  """
  cubes = [
    torch.rand((batch, 1, *shape), device=device).contiguous(
      memory_format=torch.channels_last_3d
    )
    for _ in range(2)
  ]
  return *cubes, torch.randint(num_words, (batch,), device=device)
