"""What is trained: a task makes its model, its input and its losses.

The step and the loop know nothing of words or restoration.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it

import gin
import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2 import schema
from transvw_tf2.perturb import perturb as perturb_lib
from transvw_tf2.perturb import random_numbers
from transvw_tf2.training import built_data
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import reports


class Task:
  """What the step and the loop ask of a task.

  Attributes:
    features: what it reads of a data set, see built_data.Data.
    metrics: names of what `losses` returns, `loss` among them.
    rising_metrics: those of `metrics` and of `summarize` that should rise.
    outputs: names of what it needs of a network that gives several.
    augments: whether it works on changed examples (parts, mirrored) rather than
      only on perturbed inputs.
  """

  features: tuple[str, ...]
  metrics: tuple[str, ...]
  rising_metrics: tuple[str, ...] = ()
  outputs: tuple[str, ...] = ()
  augments: bool = False

  def prepare(self, data: built_data.Data) -> None:
    """Takes the opened data; called once, before anything below."""

  def build_model(
    self, synchronized_batch_norm: bool = False, dtype: str = 'float32'
  ) -> keras.Model:
    """Returns the network, not yet built, of a Keras dtype policy."""
    raise NotImplementedError

  def describe(self) -> dict:
    """Returns JSON values that must not change within a run."""
    return {}

  def part_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the sides of what `crop` leaves of a volume of a shape."""
    return tuple(shape)

  def crop(self, batch, seeds):
    """Returns the parts of a batch to work on, by int32 (B, 2) seeds."""
    del seeds
    return batch

  def augment(self, batch, seeds):
    """Returns a batch to train on instead, by int32 (B, 2) seeds."""
    del seeds
    return batch

  def make_inputs(self, batch, seeds):
    """Returns what the model sees of a batch, from int32 (B, 2) seeds."""
    raise NotImplementedError

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns float32 (B,) by metric, to be averaged over the examples."""
    raise NotImplementedError

  def totals(self, outputs, batch) -> dict[str, tf.Tensor]:
    """Returns what else is summed over validation, weighted by `weight`."""
    del outputs, batch
    return {}

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns metrics of all of validation that are no means over examples."""
    del totals
    return {}

  def figures(
    self, totals: Mapping[str, np.ndarray]
  ) -> dict[str, matplotlib.figure.Figure]:
    """Draws the totals of validation, by title."""
    del totals
    return {}

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns float32 (B, X, Y, Z, 1) by title."""
    raise NotImplementedError

  def embedding(self, outputs) -> tf.Tensor | None:
    """Returns float32 (B, D) that the embedding projector shows, if any."""
    del outputs
    return None

  def labels(self, batch) -> list[str]:
    """Returns the name of each example in the embedding projector."""
    return [str(index) for index in np.asarray(batch['index'])]


@gin.configurable('perturb', module='tasks')
def make_perturb(**settings) -> perturb_lib.Perturb:
  """Returns the perturbation layer; the settings are those of Perturb."""
  try:
    return perturb_lib.Perturb(**settings, dtype='float32')
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'perturb: {error}') from error


class _CubeTask(Task):
  """A task on perturbed cubes or, with `crop`, on parts of them."""

  def __init__(
    self,
    model: Callable[..., keras.Model],
    perturb: Callable[[], perturb_lib.Perturb],
    crop: Sequence[int] | None,
  ):
    self._model = model
    self._perturb = perturb()
    if not isinstance(crop, Sequence | None):
      raise errors.UserError(
        f'crop is {crop!r}, wanted three whole numbers such as (32, 32, 16)'
      )
    self._shape = crop and tuple(crop)
    self.augments = crop is not None

  def prepare(self, data: built_data.Data) -> None:
    """Checks the part of the cubes against those of the data."""
    if self._shape and not _is_part(self._shape, data.shape):
      raise errors.UserError(
        f'crop is {self._shape}, wanted three whole numbers of at most the'
        f' cube, {tuple(data.shape)}: change crop'
      )

  def part_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the sides of the parts."""
    return self._shape or tuple(shape)

  def crop(self, batch, seeds):
    """Cuts a random part out of each cube, where one is asked for.

    In validation too: painted blocks do not shrink with the cube, so that whole
    cubes are another task. Their loss can rise while that of the parts falls,
    and the weights kept would be those of an early epoch.
    """
    if not self._shape:
      return batch
    cube = batch['cube']
    draws = random_numbers.draw_uniform(
      seeds, random_numbers.Stream.CROP, (len(self._shape),)
    )
    for axis, side in enumerate(self._shape):
      room = cube.shape[1 + axis] - side
      corner = tf.cast(draws[:, axis] * (room + 1), tf.int32)
      cube = tf.gather(
        cube,
        corner[:, tf.newaxis] + tf.range(side),
        axis=1 + axis,
        batch_dims=1,
      )
    return {**batch, 'cube': cube}

  def describe(self) -> dict:
    """Returns what the validation loss is of: parts, and perturbed how."""
    config = self._perturb.get_config()
    layer = set(keras.layers.Layer().get_config())
    return {
      'crop': self._shape,
      'perturbation': {key: config[key] for key in config if key not in layer},
    }

  def make_inputs(self, batch, seeds):
    """Perturbs the cubes of a batch by int32 (B, 2) seeds."""
    return self._perturb(batch['cube'], seeds)


class _WordTask(_CubeTask):
  """A task that names words; `words` of the model are their probabilities."""

  features = built_data.CUBES_AND_WORDS
  outputs = ('words',)

  def prepare(self, data: built_data.Data) -> None:
    """Takes the words of the data set."""
    super().prepare(data)
    self._words = data.words

  def build_model(
    self, synchronized_batch_norm: bool = False, dtype: str = 'float32'
  ) -> keras.Model:
    """Returns the network for the words of the data, not yet built."""
    return build_model(
      self._model,
      num_words=len(self._words),
      synchronized_batch_norm=synchronized_batch_norm,
      dtype=dtype,
    )

  def describe(self) -> dict:
    """Returns the names of the words too."""
    return {'words': self._words, **super().describe()}

  def totals(self, outputs, batch) -> dict[str, tf.Tensor]:
    """Returns `confusion`, float32 (C, C): true word, named word."""
    count = len(self._words)
    true = tf.one_hot(batch['word'], count) * batch['weight'][:, tf.newaxis]
    named = tf.one_hot(tf.argmax(outputs['words'], axis=-1), count)
    return {'confusion': tf.matmul(true, named, transpose_a=True)}

  def figures(self, totals):
    """Draws which words are taken for which."""
    return {
      'confusion': reports.draw_confusion(totals['confusion'], self._words)
    }

  def embedding(self, outputs) -> tf.Tensor:
    """Returns float32 (B, embedding size of the network)."""
    return outputs['embedding']

  def labels(self, batch) -> list[str]:
    """Returns the names of the words."""
    return [self._words[word] for word in np.asarray(batch['word'])]


@gin.configurable(module='tasks')
class Pretrain(_WordTask):
  """Restores a perturbed cube and names its word (TransVW, section III).

  loss = restoration_weight * MSE + word_weight * cross-entropy of the word's
  softmax probability, both plain means.
  """

  metrics = ('loss', 'mse', 'cross_entropy', 'accuracy', 'perturbed_mse')
  outputs = ('restored', 'words')
  rising_metrics = ('accuracy',)

  def __init__(
    self,
    model: Callable[..., keras.Model] = models.build_visual_word_net,
    perturb: Callable[[], perturb_lib.Perturb] = make_perturb,
    restoration_weight: float = 1.0,
    word_weight: float = 0.01,
    crop: Sequence[int] | None = None,
  ):
    """Initialises the task.

    Args:
      model: makes the network from num_words, synchronized_batch_norm and
        dtype.
      perturb: makes the perturbation, a layer called with cubes and seeds.
      restoration_weight: weight of the mean squared error.
      word_weight: weight of the cross-entropy.
      crop: voxels along x, y and z of the random part of each cube to take, in
        training and validation, each divisible by 8 for a network of depth 4;
        None for whole cubes, as published. For target cubes that show much less
        than these.
    """
    if min(restoration_weight, word_weight) < 0 or not (
      restoration_weight or word_weight
    ):
      raise errors.UserError(
        f'restoration_weight is {restoration_weight} and word_weight '
        f'{word_weight}, wanted neither negative and not both 0'
      )
    super().__init__(model, perturb, crop)
    self._restoration_weight = restoration_weight
    self._word_weight = word_weight

  def describe(self) -> dict:
    """Returns the weights of the losses too."""
    weights = [self._restoration_weight, self._word_weight]
    return {**super().describe(), 'loss_weights': weights}

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
    restoration = _restoration_losses(outputs['restored'], batch, inputs)
    naming = _word_losses(outputs['words'], batch)
    loss = (
      self._restoration_weight * restoration['mse']
      + self._word_weight * naming['cross_entropy']
    )
    return {'loss': loss, **restoration, **naming}

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns what a picture of some cubes shows."""
    return _restoration_pictures(outputs['restored'], batch, inputs)


@gin.configurable(module='tasks')
class NameWords(_WordTask):
  """Names the word of a perturbed cube; nothing is restored.

  loss = cross-entropy. The first of the published stages.
  """

  metrics = ('loss', 'cross_entropy', 'accuracy')
  rising_metrics = ('accuracy',)

  def __init__(
    self,
    model: Callable[..., keras.Model] = models.build_word_classifier,
    perturb: Callable[[], perturb_lib.Perturb] = make_perturb,
    crop: Sequence[int] | None = None,
  ):
    """Initialises the task.

    Args:
      model: makes the network from num_words, synchronized_batch_norm and
        dtype: the encoder with a dense layer, or a whole Y-Net.
      perturb: makes the perturbation, a layer called with cubes and seeds.
      crop: see Pretrain.
    """
    super().__init__(model, perturb, crop)

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns float32 (B,) `loss` and `cross_entropy`, and `accuracy`."""
    del inputs
    naming = _word_losses(outputs['words'], batch)
    return {'loss': naming['cross_entropy'], **naming}

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns what a picture of some cubes shows."""
    del outputs
    return {'original': batch['cube'], 'perturbed': inputs}


@gin.configurable(module='tasks')
class Restore(_CubeTask):
  """Restores a perturbed cube; its word is not read (Models Genesis).

  loss = MSE.
  """

  features = ('cube',)
  metrics = ('loss', 'mse', 'perturbed_mse')

  def __init__(
    self,
    model: Callable[..., keras.Model] = models.build_unet3d,
    perturb: Callable[[], perturb_lib.Perturb] = make_perturb,
    crop: Sequence[int] | None = None,
  ):
    """Initialises the task.

    Args:
      model: makes the network from synchronized_batch_norm and dtype.
      perturb: makes the perturbation, a layer called with cubes and seeds.
      crop: see Pretrain.
    """
    super().__init__(model, perturb, crop)

  def build_model(
    self, synchronized_batch_norm: bool = False, dtype: str = 'float32'
  ) -> keras.Model:
    """Returns the network, not yet built."""
    return build_unet(
      self._model, synchronized_batch_norm=synchronized_batch_norm, dtype=dtype
    )

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns float32 (B,) `loss` and `mse`, and `perturbed_mse`."""
    restoration = _restoration_losses(outputs, batch, inputs)
    return {'loss': restoration['mse'], **restoration}

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns what a picture of some cubes shows."""
    return _restoration_pictures(outputs, batch, inputs)


@gin.configurable(module='tasks')
class Autoencoder(Task):
  """Restores a whole scan from its thumbnail (TransVW, section III-A).

  loss = MSE. Its encoder describes scans, so that similar ones are found.
  """

  features = built_data.THUMBNAILS
  metrics = ('loss', 'mse', 'mean_mse')

  def __init__(self, model: Callable[..., keras.Model] = models.build_unet3d):
    """Initialises the task.

    Args:
      model: makes the network from synchronized_batch_norm and dtype.
    """
    self._model = model

  def prepare(self, data: built_data.Data) -> None:
    """Computes the mean training thumbnail, the prediction to be beaten."""
    total = np.zeros(data.shape)
    for one in input_pipeline.read_volumes(data, schema.TRAIN):
      total += one
    mean = schema.scale_hu(total / data.size(schema.TRAIN))
    self._mean = tf.constant(mean[..., np.newaxis], tf.float32)

  def build_model(
    self, synchronized_batch_norm: bool = False, dtype: str = 'float32'
  ) -> keras.Model:
    """Returns the network, not yet built."""
    return build_unet(
      self._model, synchronized_batch_norm=synchronized_batch_norm, dtype=dtype
    )

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


def _is_part(crop, shape):
  return len(crop) == len(shape) and all(
    isinstance(side, int) and 0 < side <= whole
    for side, whole in zip(crop, shape, strict=True)
  )


def build_model(model: Callable[..., keras.Model], **settings) -> keras.Model:
  """Calls what makes a network; what does not fit is a UserError."""
  try:
    return model(**settings)
  # The former for one of another kind, that takes other settings.
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'model: {errors.without_call(error)}') from error


def build_unet(model: Callable[..., keras.Model], **settings) -> keras.Model:
  """Calls what makes a network with one channel out, as a cube or mask has.

  With more of them, losses and counts would broadcast to all without a word.

  Raises:
    UserError: it has another number, or a setting does not fit.
  """
  network = build_model(model, **settings)
  if network.output_channels != 1:
    raise errors.UserError(
      f'the network has {network.output_channels} channels out, wanted 1: set'
      ' unet3d.output_channels = 1'
    )
  return network


def _restoration_losses(restored, batch, inputs):
  return {
    'mse': _mean_squared_error(restored, batch['cube']),
    'perturbed_mse': _mean_squared_error(inputs, batch['cube']),
  }


def _restoration_pictures(restored, batch, inputs):
  return {
    'original': batch['cube'],
    'perturbed': inputs,
    'restored': restored,
  }


def _word_losses(probabilities, batch):
  named = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
  return {
    'cross_entropy': keras.losses.sparse_categorical_crossentropy(
      batch['word'], probabilities
    ),
    'accuracy': tf.cast(named == batch['word'], tf.float32),
  }


def _mean_squared_error(first, second):
  return tf.reduce_mean(tf.square(first - second), axis=[1, 2, 3, 4])
