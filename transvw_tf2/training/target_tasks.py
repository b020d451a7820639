"""Target tasks: what a pre-trained network is fine-tuned for.

Settings and metrics are those of the TransVW paper (section IV) and of Models
Genesis (MedIA 2021, section 3).
"""

from collections.abc import Callable
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import math

import gin
import keras
import numpy as np
from sklearn import metrics as sklearn_metrics
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.perturb import random_numbers
from transvw_tf2.training import built_data
from transvw_tf2.training import target_reports
from transvw_tf2.training import tasks

# Thresholds of the published mean IoU.
THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))
# Scores are counted in so many bins for the AUC of validation: of the log odds,
# as large as float32 holds, fine at even odds and coarse where a network is
# sure. Bins of the probability would put all that it is sure of into one.
_BINS = 4096
_MOST_LOG_ODDS = 88.0
_AXES = {'x': 1, 'y': 2, 'z': 3}


class _TargetTask(tasks.Task):
  """A task on cubes as they are; it trains on mirrored ones."""

  augments = True

  def __init__(self, model: Callable[..., keras.Model], mirror: str):
    if set(mirror) - set(_AXES) or len(set(mirror)) != len(mirror):
      raise errors.UserError(
        f'mirror is {mirror!r}, wanted axes such as "xy", or "" for none'
      )
    self._model = model
    self._mirror = mirror

  def augment(self, batch, seeds):
    """Mirrors each cube, and its mask, along each of the axes half the time."""
    names = [name for name in ('cube', 'mask') if name in batch]
    changed = {name: batch[name] for name in names}
    draws = random_numbers.draw_uniform(
      seeds, random_numbers.Stream.MIRROR, (len(_AXES),)
    )
    for axis in self._mirror:
      flip = draws[:, _AXES[axis] - 1] < 0.5
      for name in names:
        changed[name] = tf.where(
          flip[:, None, None, None, None],
          tf.reverse(changed[name], [_AXES[axis]]),
          changed[name],
        )
    return {**batch, **changed}

  def make_inputs(self, batch, seeds):
    """Returns the cubes of a batch as they are."""
    del seeds
    return batch['cube']


@gin.configurable(module='tasks')
class Classification(_TargetTask):
  """Names the class of a cube, such as nodule or not.

  loss = cross-entropy of the softmax probabilities.
  """

  features = built_data.CUBES_AND_LABELS
  metrics = ('loss', 'accuracy')
  rising_metrics = ('accuracy', 'auc')

  def __init__(
    self,
    model: Callable[..., keras.Model] = models.build_classifier,
    mirror: str = '',
  ):
    """Initialises the task.

    Args:
      model: makes the network from num_classes, synchronized_batch_norm and
        dtype.
      mirror: axes along which cubes are mirrored at random, such as 'xyz'.
    """
    super().__init__(model, mirror)

  def prepare(self, data: built_data.Data) -> None:
    """Takes the classes of the data set."""
    if len(data.classes) < 2:
      raise errors.UserError(
        f'data set {data.data_dir} has the classes {data.classes}, wanted at'
        ' least 2'
      )
    self._classes = data.classes

  def build_model(
    self, synchronized_batch_norm: bool = False, dtype: str = 'float32'
  ) -> keras.Model:
    """Returns the network for the classes of the data, not yet built."""
    return tasks.build_model(
      self._model,
      num_classes=len(self._classes),
      synchronized_batch_norm=synchronized_batch_norm,
      dtype=dtype,
    )

  def describe(self) -> dict:
    """Returns the names of the classes."""
    return {'classes': self._classes}

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns the loss of each cube, and whether its class was named right.

    Args:
      outputs: of the model: `probabilities` float32 (B, C).
      batch: `label` int32 (B,).
      inputs: not used.

    Returns:
      dict of float32 (B,): `loss` and `accuracy` (0 or 1).
    """
    del inputs
    probabilities, label = outputs['probabilities'], batch['label']
    named = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
    return {
      'loss': keras.losses.sparse_categorical_crossentropy(
        label, probabilities
      ),
      'accuracy': tf.cast(named == label, tf.float32),
    }

  def totals(self, outputs, batch) -> dict[str, tf.Tensor]:
    """Counts how often each score was given, by class.

    Returns:
      `scores`, float32 (C, 2, 4096): of a class, how often to cubes of another
      class (0) and of that class (1).
    """
    count = len(self._classes)
    probabilities = outputs['probabilities']
    # Not 1 - p, of which float32 has nothing left where p is almost 1.
    others = tf.matmul(probabilities, 1 - tf.eye(count))
    log_odds = tf.asinh(tf.math.log(probabilities) - tf.math.log(others))
    most = math.asinh(_MOST_LOG_ODDS)
    places = (tf.clip_by_value(log_odds, -most, most) / most + 1) / 2
    bins = tf.cast(places * (_BINS - 1), tf.int32)
    bins = tf.one_hot(bins, _BINS)
    is_class = tf.one_hot(batch['label'], count)
    sides = tf.stack([1 - is_class, is_class], axis=-1)
    sides *= batch['weight'][:, tf.newaxis, tf.newaxis]
    return {'scores': tf.einsum('bcs,bck->csk', sides, bins)}

  def summarize(self, totals) -> dict[str, float]:
    """Returns `auc`: that of the second of two classes, else their mean."""
    areas = [
      sklearn_metrics.auc(*roc_of_counts(*scores))
      for scores in totals['scores']
    ]
    return {'auc': float(areas[1] if len(areas) == 2 else np.mean(areas))}

  def figures(self, totals):
    """Draws the ROC curve of each class, of two that of the second."""
    curves = {}
    first = 1 if len(self._classes) == 2 else 0
    for name, scores in zip(
      self._classes[first:], totals['scores'][first:], strict=True
    ):
      curves[name] = roc_of_counts(*scores)
    return {'roc': target_reports.draw_roc(curves)}

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns the cubes."""
    del outputs, inputs
    return {'cube': batch['cube']}

  def embedding(self, outputs) -> tf.Tensor:
    """Returns float32 (B, embedding size of the network)."""
    return outputs['embedding']

  def labels(self, batch) -> list[str]:
    """Returns the names of the classes."""
    return [self._classes[label] for label in np.asarray(batch['label'])]


@gin.configurable(module='tasks')
class Segmentation(_TargetTask):
  """Finds the voxels of a structure in a cube, such as a nodule.

  loss = 1 - Dice of the batch, (2 sum(t y) + 1) / (sum(t) + sum(y) + 1) over
  all its voxels. With several replicas, or accumulation, that of their parts.
  """

  features = built_data.CUBES_AND_MASKS
  metrics = ('loss',)
  rising_metrics = ('iou', 'dice', 'mean_iou')

  def __init__(
    self,
    model: Callable[..., keras.Model] = models.build_unet3d,
    mirror: str = '',
  ):
    """Initialises the task.

    Args:
      model: makes the network, with one channel out, from
        synchronized_batch_norm and dtype.
      mirror: axes along which cubes are mirrored at random, such as 'xyz'.
    """
    super().__init__(model, mirror)

  def build_model(
    self, synchronized_batch_norm: bool = False, dtype: str = 'float32'
  ) -> keras.Model:
    """Returns the network, not yet built."""
    return tasks.build_unet(
      self._model, synchronized_batch_norm=synchronized_batch_norm, dtype=dtype
    )

  def losses(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns the loss of the batch, once for each of its cubes.

    Args:
      outputs: of the model, float32 (B, X, Y, Z, 1) in [0, 1].
      batch: `mask` float32 (B, X, Y, Z, 1), 0 or 1, and `weight` (B,).
      inputs: not used.

    Returns:
      dict of float32 (B,): `loss`.
    """
    del inputs
    mask = batch['mask']
    weight = batch['weight'][:, None, None, None, None]
    both = 2.0 * tf.reduce_sum(weight * mask * outputs) + 1.0
    dice = both / (tf.reduce_sum(weight * (mask + outputs)) + 1.0)
    return {'loss': tf.fill(tf.shape(batch['weight']), 1.0 - dice)}

  def totals(self, outputs, batch) -> dict[str, tf.Tensor]:
    """Returns `counts`, float32 (10, 2, 2), the sum of `count_voxels`."""
    counts = count_voxels(batch['mask'], outputs)
    return {'counts': tf.einsum('b,btmp->tmp', batch['weight'], counts)}

  def summarize(self, totals) -> dict[str, float]:
    """Returns `iou` and `dice` at 0.5, and `mean_iou`."""
    return summarize_counts(totals['counts'])

  def pictures(self, outputs, batch, inputs) -> dict[str, tf.Tensor]:
    """Returns what a picture of some cubes shows."""
    del inputs
    return {'cube': batch['cube'], 'mask': batch['mask'], 'predicted': outputs}


def roc_of_counts(negatives: np.ndarray, positives: np.ndarray):
  """Returns false and true positive rates, (n,), of scores in bins.

  Args:
    negatives: float (n,), how often each score, rising, was given wrongly.
    positives: float (n,), the same for what should have it.

  Returns:
    The rates; NaN where there are no negatives or no positives.
  """
  if not (negatives.any() and positives.any()):
    return np.full(2, np.nan), np.full(2, np.nan)
  bins = np.arange(len(negatives))
  false, true, _ = sklearn_metrics.roc_curve(
    np.repeat([0, 1], len(bins)),
    np.tile(bins, 2),
    sample_weight=np.concatenate([negatives, positives]),
  )
  return false, true


def count_voxels(mask, predicted) -> tf.Tensor:
  """Counts the voxels of each cube by threshold, mask and prediction.

  Args:
    mask: float32 (B, X, Y, Z, 1), 0 or 1.
    predicted: float32 (B, X, Y, Z, 1) in [0, 1].

  Returns:
    float32 (B, 10, 2, 2), exact up to 2**24 voxels in a cube.
  """
  counts = []
  for threshold in THRESHOLDS:
    found = tf.cast(predicted >= threshold, tf.float32)
    counts.append(
      [
        [
          tf.reduce_sum(one * other, [1, 2, 3, 4])
          for other in (1 - found, found)
        ]
        for one in (1 - mask, mask)
      ]
    )
  return tf.transpose(tf.convert_to_tensor(counts), (3, 0, 1, 2))


def summarize_counts(counts: np.ndarray) -> dict[str, float]:
  """Returns metrics of voxels that were counted over a whole set.

  Args:
    counts: float (10, 2, 2), voxels by THRESHOLDS, mask and prediction.

  Returns:
    `iou` and `dice` of the structure at threshold 0.5, and `mean_iou`: the IoU
    averaged over background and structure and over the thresholds. A structure
    that is neither there nor predicted has 1.
  """
  counts = np.asarray(counts, np.float64)
  both = np.stack([counts[:, 0, 0], counts[:, 1, 1]], axis=-1)
  wrong = (counts[:, 0, 1] + counts[:, 1, 0])[:, np.newaxis]
  union = both + wrong
  ious = np.where(union > 0, both / np.maximum(union, 1), 1.0)
  iou = float(ious[0, 1])
  return {
    'iou': iou,
    'dice': 2 * iou / (1 + iou),
    'mean_iou': float(ious.mean()),
  }
