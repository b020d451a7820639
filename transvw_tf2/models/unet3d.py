"""3D U-Net that restores a cube; without skips it is the "V-Net" of the paper.

TransVW (arXiv 2102.10680) and Models Genesis (MedIA 2021) share this network.
Blocks are numbered as in their weights: two per level down, then two per level
up (depth 4: 0..7 down, 8..13 up).
"""

import keras
import numpy as np

from transvw_tf2.models import blocks
from transvw_tf2.models import convolutions

_PACKAGE = 'transvw_tf2'


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Encoder(keras.layers.Layer):
  """Contracting path: two blocks per level, max-pooling by 2 between levels.

  Level d has a block of base_filters * 2^d and one of base_filters * 2^(d+1)
  filters.
  """

  def __init__(
    self,
    base_filters: int = 32,
    depth: int = 4,
    synchronized_batch_norm: bool = False,
    **kwargs,
  ):
    """Initialises the encoder.

    Args:
      base_filters: filters of the very first block.
      depth: levels, at least 2.
      synchronized_batch_norm: see blocks.ConvBlock.
      **kwargs: passed to keras.layers.Layer.
    """
    kwargs.setdefault('name', 'encoder')
    super().__init__(**kwargs)
    blocks.check_positive(base_filters=base_filters, depth=depth)
    if depth < 2:
      raise ValueError(f'depth is {depth}, wanted at least 2: change depth')
    self.base_filters = base_filters
    self.depth = depth
    self.synchronized_batch_norm = synchronized_batch_norm
    # Attributes, not a list: tf.train.Checkpoint does not see layers in lists
    # of Keras 3 and would leave their weights out without a word.
    for number in range(2 * depth):
      block = blocks.ConvBlock(
        base_filters * 2 ** (number // 2 + number % 2),
        number,
        synchronized_batch_norm,
        dtype=self.dtype_policy,
      )
      setattr(self, block.name, block)
    self.pool = keras.layers.MaxPooling3D(
      2, data_format='channels_last', dtype=self.dtype_policy, name='pool'
    )

  @property
  def conv_blocks(self) -> list[blocks.ConvBlock]:
    """The blocks in order, two per level."""
    return [getattr(self, f'depth_{n}') for n in range(2 * self.depth)]

  @property
  def embedding_size(self) -> int:
    """Channels of the bottleneck, 512 at depth 4 and 32 base filters."""
    return self.base_filters * 2**self.depth

  def build(self, cubes_shape):
    blocks.check_cubes_shape(cubes_shape, self.depth)
    channels = cubes_shape[-1]
    for block in self.conv_blocks:
      block.build((None, None, None, None, channels))
      channels = block.filters

  def call(self, cubes, training=None):
    """Returns the features of all levels.

    Args:
      cubes: float32 (B, X, Y, Z, 1) in [0, 1]; sides multiples of 2^(depth-1).
      training: whether batch statistics are used.

    Returns:
      The bottleneck, float (B, Z/2^(depth-1), ..., base_filters * 2^depth), and
      the list of skips, finest first, one per upper level; all have the axes of
      blocks, (B, Z, X, Y, channels).

    Raises:
      ValueError: the sides of the cubes do not fit.
    """
    blocks.check_cubes_shape(cubes.shape, self.depth)
    features = convolutions.to_inner(cubes)
    skips = []
    for level in range(self.depth):
      if level:
        skips.append(features)
        features = self.pool(features)
      features = self._run_level(level, features, training)
    return features, skips

  def finish(self, pooled):
    """Maps the pooled features of the first level to the bottleneck.

    Batch norm is by moving statistics; axes are those of blocks.
    """
    features = self._run_level(1, pooled)
    for level in range(2, self.depth):
      features = self._run_level(level, self.pool(features))
    return features

  def _run_level(self, level, features, training=None):
    for block in self.conv_blocks[2 * level : 2 * level + 2]:
      features = block(features, training=training)
    return features

  def compute_output_shape(self, cubes_shape):
    x, y, z = cubes_shape[1:4]

    def level_shape(level):
      sides = (None if side is None else side // 2**level for side in (z, x, y))
      return (cubes_shape[0], *sides, self.base_filters * 2 ** (level + 1))

    shapes = [level_shape(level) for level in range(self.depth)]
    return shapes[-1], shapes[:-1]

  def get_config(self):
    return {
      **super().get_config(),
      'base_filters': self.base_filters,
      'depth': self.depth,
      'synchronized_batch_norm': self.synchronized_batch_norm,
    }


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Decoder(keras.layers.Layer):
  """Expanding path: per level upsample, concatenate the skip, two blocks."""

  def __init__(
    self,
    base_filters: int = 32,
    depth: int = 4,
    skip_connections: bool = True,
    upsampling: str = blocks.NEAREST,
    fused_upsampling: bool = False,
    synchronized_batch_norm: bool = False,
    **kwargs,
  ):
    """Initialises the decoder; see blocks.UpLevel for the settings."""
    kwargs.setdefault('name', 'decoder')
    super().__init__(**kwargs)
    self.base_filters = base_filters
    self.depth = depth
    self.skip_connections = skip_connections
    self.upsampling = upsampling
    self.fused_upsampling = fused_upsampling
    self.synchronized_batch_norm = synchronized_batch_norm
    # Attributes, not a list: see Encoder.
    for step in range(depth - 1):
      level = blocks.UpLevel(
        filters=base_filters * 2 ** (depth - 1 - step),
        number=2 * depth + 2 * step,
        skip_connections=skip_connections,
        upsampling=upsampling,
        fused_upsampling=fused_upsampling,
        synchronized_batch_norm=synchronized_batch_norm,
        dtype=self.dtype_policy,
      )
      setattr(self, level.name, level)

  @property
  def levels(self) -> list[blocks.UpLevel]:
    """The levels in order, coarsest first."""
    return [
      getattr(self, f'up_level_{2 * self.depth + 2 * step}')
      for step in range(self.depth - 1)
    ]

  def build(self, bottleneck_shape, skips_shape):
    shape = tuple(bottleneck_shape)
    for level, skip_shape in zip(
      self.levels, reversed(skips_shape), strict=True
    ):
      level.build(shape, skip_shape)
      shape = (*skip_shape[:-1], level.filters)

  def call(self, bottleneck, skips, training=None):
    """Maps what Encoder returns to float (B, Z, X, Y, 2 * base_filters)."""
    features = bottleneck
    for level, skip in zip(self.levels, reversed(skips), strict=True):
      features = level(features, skip, training=training)
    return features

  def compute_output_shape(self, bottleneck_shape, skips_shape):
    return (*skips_shape[0][:-1], 2 * self.base_filters)

  def get_config(self):
    return {
      **super().get_config(),
      'base_filters': self.base_filters,
      'depth': self.depth,
      'skip_connections': self.skip_connections,
      'upsampling': self.upsampling,
      'fused_upsampling': self.fused_upsampling,
      'synchronized_batch_norm': self.synchronized_batch_norm,
    }


@keras.saving.register_keras_serializable(package=_PACKAGE)
class UNet3D(keras.Model):
  """U-Net from a cube to a cube in [0, 1]: restoration or segmentation."""

  def __init__(
    self,
    base_filters: int = 32,
    depth: int = 4,
    skip_connections: bool = True,
    upsampling: str = blocks.NEAREST,
    fused_upsampling: bool = False,
    synchronized_batch_norm: bool = False,
    output_channels: int = 1,
    **kwargs,
  ):
    """Initialises the network.

    Args:
      base_filters: filters of the very first block.
      depth: levels, at least 2.
      skip_connections: False gives the paper's "V-Net".
      upsampling: 'nearest' or 'transposed', see blocks.UpLevel.
      fused_upsampling: the same result computed another way, same weights.
      synchronized_batch_norm: see blocks.ConvBlock.
      output_channels: channels out, each a sigmoid.
      **kwargs: passed to keras.Model.
    """
    # A fixed name: configurations of equal networks are equal.
    kwargs.setdefault('name', 'unet3d')
    super().__init__(**kwargs)
    blocks.check_positive(output_channels=output_channels)
    self.output_channels = output_channels
    self.encoder = Encoder(
      base_filters, depth, synchronized_batch_norm, dtype=self.dtype_policy
    )
    self.decoder = Decoder(
      base_filters,
      depth,
      skip_connections,
      upsampling,
      fused_upsampling,
      synchronized_batch_norm,
      dtype=self.dtype_policy,
    )
    self.final_conv = keras.layers.Conv3D(
      output_channels,
      1,
      data_format='channels_last',
      dtype=self.dtype_policy,
      name='final_conv',
    )
    # float32 also under mixed precision: losses are computed from it.
    self.reconst_output = keras.layers.Activation(
      'sigmoid', dtype='float32', name='reconst_output'
    )
    # float32 as well: a mean over many voxels.
    self.global_pool = keras.layers.GlobalAveragePooling3D(
      data_format='channels_last', dtype='float32', name='global_pool'
    )

  def __call__(self, cubes, *args, **kwargs):
    # Checked here, for Keras buries what `call` raises in a long message.
    blocks.check_cubes_shape(np.shape(cubes), self.encoder.depth)
    return super().__call__(cubes, *args, **kwargs)

  @property
  def embedding_size(self) -> int:
    """Numbers in an embedding, 512 at depth 4 and 32 base filters."""
    return self.encoder.embedding_size

  @property
  def parts(self) -> dict[str, list[keras.layers.Layer]]:
    """Layers by what another network can start from."""
    return {
      'encoder': [self.encoder],
      'decoder': [self.decoder],
      # Apart: another number of channels leaves the decoder as useful.
      'output': [self.final_conv],
    }

  def build(self, cubes_shape):
    self.encoder.build(cubes_shape)
    shapes = self.encoder.compute_output_shape(cubes_shape)
    self.decoder.build(*shapes)
    self.final_conv.build(self.decoder.compute_output_shape(*shapes))

  def call(self, cubes, training=None):
    """Maps float32 (B, X, Y, Z, 1) in [0, 1] to float32 (B, X, Y, Z, channels).

    The sides of the cubes are multiples of 2^(depth-1), else ValueError.
    """
    bottleneck, skips = self.encoder(cubes, training=training)
    return self.restore(bottleneck, skips, training=training)

  def restore(self, bottleneck, skips, training=None):
    """Maps what the encoder returns to float32 (B, X, Y, Z, channels)."""
    features = self.decoder(bottleneck, skips, training=training)
    return self.reconst_output(convolutions.to_outer(self.final_conv(features)))

  def embed(self, cubes, grid=(1, 1, 1)):
    """Maps cubes as in `call` to float32 (B, embedding_size), encoder only.

    The global average pool of the bottleneck (`depth_7_relu` at depth 4), with
    moving statistics; of a finer `grid` as many numbers for each part, see
    blocks.pool_grid.
    """
    bottleneck, _ = self.encoder(cubes, training=False)
    return blocks.pool_grid(bottleneck, grid)

  def compute_output_shape(self, cubes_shape):
    return (*cubes_shape[:-1], self.output_channels)

  def get_config(self):
    # The decoder has all settings of the network; name, dtype and trainable are
    # the network's own.
    return {
      **self.decoder.get_config(),
      **super().get_config(),
      'output_channels': self.output_channels,
    }
