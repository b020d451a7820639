"""What is trained: a task makes its model, its input and its losses.

The step and the loop know nothing of words or restoration. A task has

  build_model(num_words, synchronized_batch_norm) -> keras.Model, not yet built
  perturb(cubes, seeds) -> what the model sees
  losses(outputs, batch, inputs) -> dict of float32 (B,), `loss` among them

and every entry of the losses is averaged over the cubes and logged.
"""

from collections.abc import Callable
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it

import gin
import keras
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.perturb import perturb as perturb_lib


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

  def build_model(
    self, num_words: int, synchronized_batch_norm: bool = False
  ) -> keras.Model:
    """Returns the network for `num_words` words, not yet built."""
    try:
      return self._model(
        num_words=num_words, synchronized_batch_norm=synchronized_batch_norm
      )
    except ValueError as error:
      raise errors.UserError(f'model: {error}') from error

  def perturb(self, cubes, seeds):
    """Perturbs float32 (B, X, Y, Z, 1) cubes by int32 (B, 2) seeds."""
    return self._perturb(cubes, seeds)

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


def _mean_squared_error(first, second):
  return tf.reduce_mean(tf.square(first - second), axis=[1, 2, 3, 4])
