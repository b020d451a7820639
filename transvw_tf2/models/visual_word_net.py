"""The Y-Net of TransVW: restores a cube and names its visual word.

Source: Haghighi et al., arXiv 2102.10680, section III; one encoder, a U-Net
decoder and a classification head on the bottleneck.
"""

import keras

from transvw_tf2.models import blocks
from transvw_tf2.models import unet3d

_PACKAGE = 'transvw_tf2'


@keras.saving.register_keras_serializable(package=_PACKAGE)
class VisualWordNet(unet3d.UNet3D):
  """U-Net with a classification head and an embedding."""

  def __init__(
    self,
    num_words: int,
    base_filters: int = 32,
    depth: int = 4,
    head_filters: int = 512,
    head_units: int = 1024,
    skip_connections: bool = True,
    upsampling: str = blocks.NEAREST,
    fused_upsampling: bool = False,
    synchronized_batch_norm: bool = False,
    **kwargs,
  ):
    """Initialises the network.

    Args:
      num_words: words C, those of the data set.
      base_filters: filters of the very first block.
      depth: levels, at least 2.
      head_filters: filters of the block between bottleneck and pooling.
      head_units: units of the hidden dense layer.
      skip_connections: see unet3d.UNet3D.
      upsampling: see unet3d.UNet3D.
      fused_upsampling: see unet3d.UNet3D.
      synchronized_batch_norm: see blocks.ConvBlock.
      **kwargs: passed to unet3d.UNet3D.
    """
    kwargs.setdefault('name', 'visual_word_net')
    super().__init__(
      base_filters,
      depth,
      skip_connections,
      upsampling,
      fused_upsampling,
      synchronized_batch_norm,
      **kwargs,
    )
    blocks.check_positive(
      num_words=num_words, head_filters=head_filters, head_units=head_units
    )
    self.num_words = num_words
    self.head_filters = head_filters
    self.head_units = head_units
    # Follows the last block of the decoder: 14 at depth 4.
    self.head_block = blocks.ConvBlock(
      head_filters,
      2 * depth + 2 * (depth - 1),
      synchronized_batch_norm,
      dtype=self.dtype_policy,
    )
    self.cls_fc = keras.layers.Dense(
      head_units, activation='relu', dtype=self.dtype_policy, name='cls_fc'
    )
    # float32 also under mixed precision: the loss is computed from it.
    self.cls_output = keras.layers.Dense(
      num_words, activation='softmax', dtype='float32', name='cls_output'
    )

  @property
  def parts(self) -> dict[str, list[keras.layers.Layer]]:
    """Layers by what another network can start from."""
    head = [self.head_block, self.cls_fc, self.cls_output]
    return {**super().parts, 'head': head}

  def build(self, cubes_shape):
    super().build(cubes_shape)
    bottleneck_shape, _ = self.encoder.compute_output_shape(cubes_shape)
    self.head_block.build(bottleneck_shape)
    self.cls_fc.build((None, self.head_filters))
    self.cls_output.build((None, self.head_units))

  def call(self, cubes, training=None):
    """Restores, names and embeds cubes.

    Args:
      cubes: float32 (B, X, Y, Z, 1) in [0, 1]; sides multiples of 2^(depth-1).
      training: whether batch statistics are used.

    Returns:
      dict of float32: `restored` (B, X, Y, Z, 1) in [0, 1], `words` (B, C)
      probabilities, `embedding` (B, embedding_size).

    Raises:
      ValueError: the sides of the cubes do not fit.
    """
    bottleneck, skips = self.encoder(cubes, training=training)
    return {
      'restored': self.restore(bottleneck, skips, training=training),
      'words': self._name_words(bottleneck, training=training),
      'embedding': self.global_pool(bottleneck),
    }

  def _name_words(self, bottleneck, training):
    features = self.global_pool(self.head_block(bottleneck, training=training))
    return self.cls_output(self.cls_fc(features))

  def compute_output_shape(self, cubes_shape):
    batch = cubes_shape[0]
    return {
      'restored': super().compute_output_shape(cubes_shape),
      'words': (batch, self.num_words),
      'embedding': (batch, self.embedding_size),
    }

  def get_config(self):
    return {
      **super().get_config(),
      'num_words': self.num_words,
      'head_filters': self.head_filters,
      'head_units': self.head_units,
    }
