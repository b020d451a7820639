"""Networks of target tasks, which start from pre-trained parts.

A classifier is the encoder with a pool and a dense layer (TransVW, section
III-C), which can be given the features in the middle of the cube as well; a
segmentation network is the U-Net itself, `models.unet3d`.
"""

import keras

from transvw_tf2.models import blocks
from transvw_tf2.models import unet3d

_PACKAGE = 'transvw_tf2'


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Classifier(keras.Model):
  """Encoder, global average pool, dense layer and softmax over the classes."""

  def __init__(
    self,
    num_classes: int,
    base_filters: int = 32,
    depth: int = 4,
    synchronized_batch_norm: bool = False,
    centre_features: bool = False,
    **kwargs,
  ):
    """Initialises the network.

    Args:
      num_classes: classes C, those of the data set.
      base_filters: filters of the very first block.
      depth: levels, at least 2.
      synchronized_batch_norm: see blocks.ConvBlock.
      centre_features: also give the dense layer the features of all levels
        around the middle of the cube (hypercolumns; Hariharan et al., CVPR
        2015). For what is small and in the middle of its cube, such as a nodule
        candidate, of which a mean over the whole cube keeps little.
      **kwargs: passed to keras.Model.
    """
    kwargs.setdefault('name', 'classifier')
    super().__init__(**kwargs)
    blocks.check_positive(num_classes=num_classes)
    self.num_classes = num_classes
    self.centre_features = centre_features
    self.encoder = unet3d.Encoder(
      base_filters, depth, synchronized_batch_norm, dtype=self.dtype_policy
    )
    # float32 also under mixed precision: a mean over many voxels, and what the
    # loss is computed from.
    self.global_pool = keras.layers.GlobalAveragePooling3D(
      data_format='channels_last', dtype='float32', name='global_pool'
    )
    self.cls_output = keras.layers.Dense(
      num_classes, activation='softmax', dtype='float32', name='cls_output'
    )

  @property
  def embedding_size(self) -> int:
    """Numbers in an embedding, 512 at depth 4 and 32 base filters."""
    return self.encoder.embedding_size

  @property
  def _num_features(self) -> int:
    levels = self.encoder.conv_blocks[1::2] if self.centre_features else []
    return self.embedding_size + sum(block.filters for block in levels)

  @property
  def parts(self) -> dict[str, list[keras.layers.Layer]]:
    """Layers by what another network can start from."""
    return {'encoder': [self.encoder], 'classifier': [self.cls_output]}

  def build(self, cubes_shape):
    self.encoder.build(cubes_shape)
    self.cls_output.build((None, self._num_features))

  def call(self, cubes, training=None):
    """Classifies and embeds cubes.

    Args:
      cubes: float32 (B, X, Y, Z, 1) in [0, 1]; sides multiples of 2^(depth-1).
      training: whether batch statistics are used.

    Returns:
      dict of float32: `probabilities` (B, C), `embedding` (B, embedding_size).

    Raises:
      ValueError: the sides of the cubes do not fit.
    """
    bottleneck, skips = self.encoder(cubes, training=training)
    embedding = self.global_pool(bottleneck)
    features = [embedding]
    if self.centre_features:
      features += map(blocks.pool_centre, [*skips, bottleneck])
    return {
      'probabilities': self.cls_output(keras.ops.concatenate(features, -1)),
      'embedding': embedding,
    }

  def embed(self, cubes, grid=(1, 1, 1)):
    """Maps cubes as in `call` to float32 (B, embedding_size), encoder only.

    With a finer `grid` as many numbers for each part, see blocks.pool_grid.
    """
    bottleneck, _ = self.encoder(cubes, training=False)
    return blocks.pool_grid(bottleneck, grid)

  def compute_output_shape(self, cubes_shape):
    batch = cubes_shape[0]
    return {
      'probabilities': (batch, self.num_classes),
      'embedding': (batch, self.embedding_size),
    }

  def get_config(self):
    return {
      **self.encoder.get_config(),
      **super().get_config(),
      'num_classes': self.num_classes,
      'centre_features': self.centre_features,
    }
