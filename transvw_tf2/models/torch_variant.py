"""The network of the PyTorch release, which differs from that of Keras.

Upsampling is always a transposed convolution; the head is one block and one
dense layer; batch normalisation has epsilon 1e-5 and, in the release, takes the
statistics of the batch in evaluation too. Files may hold it without a head (as
Models Genesis) or without a decoder (the stage that learns words alone), so
both are optional here.
"""

import keras
import numpy as np

from transvw_tf2.models import blocks
from transvw_tf2.models import convolutions
from transvw_tf2.models import unet3d

_PACKAGE = 'transvw_tf2'

EPSILON = 1e-5
_MOMENTUM = 0.9  # PyTorch's default of 0.1, counted the other way


@keras.saving.register_keras_serializable(package=_PACKAGE)
class TorchVisualWordNet(keras.Model):
  """Encoder with a decoder, a head, both or neither."""

  def __init__(
    self,
    num_words: int | None = None,
    base_filters: int = 32,
    depth: int = 4,
    has_decoder: bool = True,
    output_channels: int = 1,
    head_filters: int = 1024,
    head_units: int | None = None,
    epsilon: float = EPSILON,
    batch_statistics: bool = False,
    synchronized_batch_norm: bool = False,
    **kwargs,
  ):
    """Initialises the network.

    Args:
      num_words: words C, or None for no head.
      base_filters: filters of the very first block.
      depth: levels, at least 2.
      has_decoder: whether it restores cubes.
      output_channels: channels restored, each a sigmoid.
      head_filters: filters of the block between bottleneck and pooling.
      head_units: units of a hidden dense layer, which the Keras network has;
        None for none.
      epsilon: of batch normalisation.
      batch_statistics: whether batches are normalised by their own statistics
        in evaluation too, as in the release, and where the network is frozen:
        the outputs of a cube then depend on its batch. The moving statistics,
        which a network that starts from this one may need, move in training.
      synchronized_batch_norm: see blocks.ConvBlock.
      **kwargs: passed to keras.Model.
    """
    kwargs.setdefault('name', 'torch_visual_word_net')
    super().__init__(**kwargs)
    self.num_words = num_words
    self.has_decoder = has_decoder
    self.output_channels = output_channels
    self.head_filters = head_filters
    self.head_units = head_units
    self.epsilon = epsilon
    self.batch_statistics = batch_statistics
    self.encoder = unet3d.Encoder(
      base_filters, depth, synchronized_batch_norm, dtype=self.dtype_policy
    )
    # float32 also under mixed precision, as all outputs.
    self.global_pool = keras.layers.GlobalAveragePooling3D(
      data_format='channels_last', dtype='float32', name='global_pool'
    )
    if has_decoder:
      self._add_decoder()
    if num_words is not None:
      self._add_head()
    for block in self._conv_blocks():
      block.batch_statistics = batch_statistics
      block.batch_norm.epsilon = epsilon
      block.batch_norm.momentum = _MOMENTUM

  def _add_decoder(self):
    blocks.check_positive(output_channels=self.output_channels)
    self.decoder = unet3d.Decoder(
      self.encoder.base_filters,
      self.encoder.depth,
      upsampling=blocks.TRANSPOSED,
      synchronized_batch_norm=self.encoder.synchronized_batch_norm,
      dtype=self.dtype_policy,
    )
    self.final_conv = keras.layers.Conv3D(
      self.output_channels,
      1,
      data_format='channels_last',
      dtype=self.dtype_policy,
      name='final_conv',
    )
    self.reconst_output = keras.layers.Activation(
      'sigmoid', dtype='float32', name='reconst_output'
    )

  def _add_head(self):
    blocks.check_positive(
      num_words=self.num_words, head_filters=self.head_filters
    )
    self.head_block = blocks.ConvBlock(
      self.head_filters,
      4 * self.encoder.depth - 2,
      self.encoder.synchronized_batch_norm,
      dtype=self.dtype_policy,
    )
    if self.head_units is not None:
      blocks.check_positive(head_units=self.head_units)
      self.cls_fc = keras.layers.Dense(
        self.head_units,
        activation='relu',
        dtype=self.dtype_policy,
        name='cls_fc',
      )
    self.cls_output = keras.layers.Dense(
      self.num_words, activation='softmax', dtype='float32', name='cls_output'
    )

  def _conv_blocks(self) -> list[blocks.ConvBlock]:
    found = list(self.encoder.conv_blocks)
    if self.has_decoder:
      found += [
        block
        for level in self.decoder.levels
        for block in (level.first, level.second)
      ]
    if self.num_words is not None:
      found.append(self.head_block)
    return found

  def _hidden_layers(self) -> list[keras.layers.Layer]:
    return [] if self.head_units is None else [self.cls_fc]

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
    parts = {'encoder': [self.encoder]}
    if self.has_decoder:
      parts |= {'decoder': [self.decoder], 'output': [self.final_conv]}
    if self.num_words is not None:
      head = [self.head_block, *self._hidden_layers(), self.cls_output]
      parts['head'] = head
    return parts

  def build(self, cubes_shape):
    self.encoder.build(cubes_shape)
    shapes = self.encoder.compute_output_shape(cubes_shape)
    if self.has_decoder:
      self.decoder.build(*shapes)
      self.final_conv.build(self.decoder.compute_output_shape(*shapes))
    if self.num_words is not None:
      self.head_block.build(shapes[0])
      width = self.head_filters
      for layer in self._hidden_layers():
        layer.build((None, width))
        width = layer.units
      self.cls_output.build((None, width))

  def call(self, cubes, training=None):
    """Restores, names and embeds cubes, as far as it has the parts.

    Args:
      cubes: float32 (B, X, Y, Z, 1) in [0, 1]; sides multiples of 2^(depth-1).
      training: whether batch statistics are used; always, if the network has
        `batch_statistics`.

    Returns:
      dict of float32: `restored` (B, X, Y, Z, channels) in [0, 1], `words`
      (B, C) probabilities, `embedding` (B, embedding_size).

    Raises:
      ValueError: the sides of the cubes do not fit.
    """
    bottleneck, skips = self.encoder(cubes, training=training)
    outputs = {}
    if self.has_decoder:
      features = self.decoder(bottleneck, skips, training=training)
      features = convolutions.to_outer(self.final_conv(features))
      outputs['restored'] = self.reconst_output(features)
    if self.num_words is not None:
      features = self.head_block(bottleneck, training=training)
      features = self.global_pool(features)
      for layer in self._hidden_layers():
        features = layer(features)
      outputs['words'] = self.cls_output(features)
    return outputs | {'embedding': self.global_pool(bottleneck)}

  def embed(self, cubes, grid=(1, 1, 1)):
    """Maps cubes as in `call` to float32 (B, embedding_size), encoder only.

    With a finer `grid` as many numbers for each part, see blocks.pool_grid.
    """
    bottleneck, _ = self.encoder(cubes, training=False)
    return blocks.pool_grid(bottleneck, grid)

  def compute_output_shape(self, cubes_shape):
    batch = cubes_shape[0]
    shapes = {'embedding': (batch, self.embedding_size)}
    if self.has_decoder:
      shapes['restored'] = (*cubes_shape[:-1], self.output_channels)
    if self.num_words is not None:
      shapes['words'] = (batch, self.num_words)
    return shapes

  def get_config(self):
    return {
      **self.encoder.get_config(),
      **super().get_config(),
      'num_words': self.num_words,
      'has_decoder': self.has_decoder,
      'output_channels': self.output_channels,
      'head_filters': self.head_filters,
      'head_units': self.head_units,
      'epsilon': self.epsilon,
      'batch_statistics': self.batch_statistics,
    }
