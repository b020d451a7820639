"""The network of Models Genesis: what it returns has names.

Source: Zhou et al., Models Genesis, MedIA 2021.
"""

import keras

from transvw_tf2.models import unet3d

_PACKAGE = 'transvw_tf2'


@keras.saving.register_keras_serializable(package=_PACKAGE)
class RestorationNet(unet3d.UNet3D):
  """A U-Net whose outputs have names, like those of the other networks."""

  def call(self, cubes, training=None):
    """Returns a dict of float32: `restored`, as UNet3D, and `embedding`."""
    bottleneck, skips = self.encoder(cubes, training=training)
    return {
      'restored': self.restore(bottleneck, skips, training=training),
      'embedding': self.global_pool(bottleneck),
    }

  def compute_output_shape(self, cubes_shape):
    return {
      'restored': super().compute_output_shape(cubes_shape),
      'embedding': (cubes_shape[0], self.embedding_size),
    }
