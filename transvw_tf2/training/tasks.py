"""What is trained: a task makes its model, its input and its losses.

The step and the loop know nothing of words or restoration. A task has

  features: what it reads of a data set, see input_pipeline.Data
  prepare(data): called once, before anything below, with the opened data
  build_model(synchronized_batch_norm) -> keras.Model, not yet built
  describe() -> dict of JSON values that must not change within a run
  make_inputs(batch, seeds) -> what the model sees, from a seed per example
  losses(outputs, batch, inputs) -> dict of float32 (B,), `loss` among them
  pictures(outputs, batch, inputs) -> dict of float32 (B, X, Y, Z, 1) by title

and every entry of the losses is averaged over the examples and logged.
"""

from collections.abc import Callable
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it

import gin
import keras
import numpy as np
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2 import schema
from transvw_tf2.perturb import perturb as perturb_lib
from transvw_tf2.training import input_pipeline


@gin.configurable('perturb', module='tasks')
def make_perturb(**settings) -> perturb_lib.Perturb:
  """Returns the perturbation layer; the settings are those of Perturb."""
  try:
    return perturb_lib.Perturb(**settings, dtype='float32')
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'perturb: {error}') from error


@gin.configurable(module='tasks')
class Pretrain:
  """Restores a perturbed cube and names its word (TransVW, section III).

  loss = restoration_weight * MSE + word_weight * cross-entropy of the word's
  softmax probability, both plain means.
  """

  features = input_pipeline.CUBES_AND_WORDS

  def __init__(
    self,
    model: Callable[..., keras.Model] = models.build_visual_word_net,
    perturb: Callable[[], perturb_lib.Perturb] = make_perturb,
    restoration_weight: float = 1.0,
    word_weight: float = 0.01,
  ):
    """Initialises the task.

    Args:
      model: makes the network from num_words and synchronized_batch_norm.
      perturb: makes the perturbation, a layer called with cubes and seeds.
      restoration_weight: weight of the mean squared error.
      word_weight: weight of the cross-entropy.
    """
    if min(restoration_weight, word_weight) < 0 or not (
      restoration_weight or word_weight
    ):
      raise errors.UserError(
        f'restoration_weight is {restoration_weight} and word_weight '
        f'{word_weight}, wanted neither negative and not both 0'
      )
    self._model = model
    self._perturb = perturb()
    self._restoration_weight = restoration_weight
    self._word_weight = word_weight

  def prepare(self, data: input_pipeline.Data) -> None:
    """Takes the words of the data set."""
    self._words = data.words

  def build_model(self, synchronized_batch_norm: bool = False) -> keras.Model:
    """Returns the network for the words of the data, not yet built."""
    return _build(
      self._model,
      num_words=len(self._words),
      synchronized_batch_norm=synchronized_batch_norm,
    )

  def describe(self) -> dict:
    """Returns the names of the words."""
    return {'words': self._words}

  def make_inputs(self, batch, seeds):
    """Perturbs the cubes of a batch by int32 (B, 2) seeds."""
    return self._perturb(batch['cube'], seeds)

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns losses and metrics of each cube.

    Args:
      outputs: of the model: `restored` float32 (B, X, Y, Z, 1) and `words`
        float32 (B, C), probabilities.
      batch: `cube` float32 (B, X, Y, Z, 1) in [0, 1], `word` int32 (B,).
      inputs: float32 (B, X, Y, Z, 1), the perturbed cubes.

    Returns:
      dict of float32 (B,): `loss`, `mse`, `cross_entropy`, `accuracy` (0 or 1)
      and `perturbed_mse`, the MSE of returning the input, to be beaten.
    """
    mse = _mean_squared_error(outputs['restored'], batch['cube'])
    cross_entropy = keras.losses.sparse_categorical_crossentropy(
      batch['word'], outputs['words']
    )
    named = tf.argmax(outputs['words'], axis=-1, output_type=tf.int32)
    return {
      'loss': (
        self._restoration_weight * mse + self._word_weight * cross_entropy
      ),
      'mse': mse,
      'cross_entropy': cross_entropy,
      'accuracy': tf.cast(named == batch['word'], tf.float32),
      'perturbed_mse': _mean_squared_error(inputs, batch['cube']),
    }

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns what a picture of some cubes shows."""
    return {
      'original': batch['cube'],
      'perturbed': inputs,
      'restored': outputs['restored'],
    }


@gin.configurable(module='tasks')
class Autoencoder:
  """Restores a whole scan from its thumbnail (TransVW, section III-A).

  loss = MSE. Its encoder describes scans, so that similar ones are found.
  """

  features = input_pipeline.THUMBNAILS

  def __init__(self, model: Callable[..., keras.Model] = models.build_unet3d):
    """Initialises the task.

    Args:
      model: makes the network from synchronized_batch_norm.
    """
    self._model = model

  def prepare(self, data: input_pipeline.Data) -> None:
    """Computes the mean training thumbnail, the prediction to be beaten."""
    total = np.zeros(data.shape)
    for one in input_pipeline.read_volumes(data, schema.TRAIN):
      total += one
    mean = schema.scale_hu(total / data.size(schema.TRAIN))
    self._mean = tf.constant(mean[..., np.newaxis], tf.float32)

  def build_model(self, synchronized_batch_norm: bool = False) -> keras.Model:
    """Returns the network, not yet built."""
    return _build(self._model, synchronized_batch_norm=synchronized_batch_norm)

  def describe(self) -> dict:
    """Returns nothing: the model and the data say all."""
    return {}

  def make_inputs(self, batch, seeds):
    """Returns the thumbnails of a batch as they are."""
    del seeds
    return batch['thumbnail']

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns losses and metrics of each thumbnail.

    Args:
      outputs: of the model, float32 (B, X, Y, Z, 1).
      batch: `thumbnail` float32 (B, X, Y, Z, 1) in [0, 1].
      inputs: the same thumbnails.

    Returns:
      dict of float32 (B,): `loss` and `mse`, the mean squared error, and
      `mean_mse`, that of predicting the mean training thumbnail, to be beaten.
    """
    del inputs
    mse = _mean_squared_error(outputs, batch['thumbnail'])
    return {
      'loss': mse,
      'mse': mse,
      'mean_mse': _mean_squared_error(self._mean, batch['thumbnail']),
    }

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns what a picture of some thumbnails shows."""
    del inputs
    return {'input': batch['thumbnail'], 'output': outputs}


def _build(model, **settings) -> keras.Model:
  try:
    return model(**settings)
  except ValueError as error:
    raise errors.UserError(f'model: {error}') from error


def _mean_squared_error(first, second):
  return tf.reduce_mean(tf.square(first - second), axis=[1, 2, 3, 4])
