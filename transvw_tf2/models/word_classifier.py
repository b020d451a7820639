"""The encoder with a single dense layer on its embedding, which names words.

Source: the first of the published Keras stages; arXiv 2102.10680, section
III-B, "self-classification" alone.
"""

import keras

from transvw_tf2.models import blocks
from transvw_tf2.models import transfer

_PACKAGE = 'transvw_tf2'


@keras.saving.register_keras_serializable(package=_PACKAGE)
class WordClassifier(transfer.Classifier):
  """A classifier whose classes are visual words."""

  def __init__(self, num_words: int, *args, **kwargs):
    """Initialises the network.

    Args:
      num_words: words C, those of the data set.
      *args: passed to transfer.Classifier.
      **kwargs: passed to transfer.Classifier.
    """
    kwargs.setdefault('name', 'word_classifier')
    blocks.check_positive(num_words=num_words)
    super().__init__(num_words, *args, **kwargs)

  @property
  def num_words(self) -> int:
    """Words C."""
    return self.num_classes

  @property
  def parts(self) -> dict[str, list[keras.layers.Layer]]:
    """Layers by what another network can start from."""
    return {'encoder': [self.encoder], 'head': [self.cls_output]}

  def call(self, cubes, training=None):
    """As transfer.Classifier; the probabilities, (B, C), are named `words`."""
    return _rename(super().call(cubes, training=training))

  def compute_output_shape(self, cubes_shape):
    return _rename(super().compute_output_shape(cubes_shape))

  def get_config(self):
    config = super().get_config()
    return config | {'num_words': config.pop('num_classes')}


def _rename(outputs):
  return {
    'words': outputs['probabilities'],
    'embedding': outputs['embedding'],
  }
