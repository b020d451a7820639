"""Metrics of a trained network on a split, with confidence intervals."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np
from sklearn import linear_model
from sklearn import metrics as sklearn_metrics
from sklearn import neighbors
from sklearn import pipeline
from sklearn import preprocessing
import tensorflow as tf
import tqdm

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import damaged_data
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import target_tasks

NEIGHBOURS, LINEAR = 'neighbours', 'linear'
PROBES = (NEIGHBOURS, LINEAR)
# False positives per scan of the LUNA16 score (Setio et al., 2017).
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1, 2, 4, 8)

_CONFIDENCE = 0.95
# A feature that data sets need not have.
_PLACE = 'place'


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a network says of N examples.

  Attributes:
    scan_ids: of the examples.
    label: int (N,), classes; or None for masks.
    probabilities: float (N, C) of the classes; or None.
    counts: float (N, 10, 2, 2), voxels by threshold, mask and prediction; or
      None.
    pictures: float (n, X, Y, Z) by title, of the first examples.
    places: float (N, 3), world mm (LPS) of the examples; None where the data
      set does not tell.
  """

  scan_ids: Sequence[str]
  label: np.ndarray | None = None
  probabilities: np.ndarray | None = None
  counts: np.ndarray | None = None
  pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  places: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric with its 95 % confidence interval; NaN where it has none."""

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    return f'{self.value:.4f} (95 % CI {self.low:.4f} to {self.high:.4f})'


def open_data(data_dir: str, kind: str) -> built_data.Data:
  """Opens the data of a target task with patients and places of its examples.

  Args:
    data_dir: see `built_data.find_data_dir`.
    kind: 'label' or 'mask'.
  """
  data = built_data.open_data(data_dir, ('cube', kind, 'scan_id'))
  if _PLACE not in data.builder.info.features:
    return data
  return dataclasses.replace(data, features=(*data.features, _PLACE))


def predict_classes(
  model, data: built_data.Data, split: str, batch_size: int
) -> Predictions:
  """Runs a classifier over a split."""
  run = tf.function(model)

  def classify(batch):
    probabilities = run(batch['cube'], training=False)['probabilities']
    _check_finite(probabilities)
    return {'label': batch['label'], 'probabilities': probabilities}

  return Predictions(**_run(data, split, batch_size, classify))


def predict_masks(
  model,
  data: built_data.Data,
  split: str,
  batch_size: int,
  most_pictures: int = 12,
) -> Predictions:
  """Runs a segmentation network over a split."""
  pictures = {'cubes': [], 'masks': [], 'predicted': []}
  run = tf.function(model)

  def count(batch):
    predicted = run(batch['cube'], training=False)
    _check_finite(predicted)
    if len(pictures['cubes']) < most_pictures:
      for weight, mask, cube, one in zip(
        batch['weight'], batch['mask'], batch['cube'], predicted, strict=True
      ):
        if weight > 0 and tf.reduce_any(mask > 0):
          pictures['cubes'].append(cube[..., 0].numpy())
          pictures['masks'].append(mask[..., 0].numpy())
          pictures['predicted'].append(one[..., 0].numpy())
    return {'counts': target_tasks.count_voxels(batch['mask'], predicted)}

  rows = _run(data, split, batch_size, count)
  return Predictions(
    pictures={
      title: np.array(found[:most_pictures])
      for title, found in pictures.items()
    },
    **rows,
  )


def _check_embeds(model, data) -> None:
  if getattr(model, 'batch_statistics', False):
    raise errors.UserError(
      'the network normalises by the statistics of a batch (batch_statistics),'
      ' so that an embedding depends on the cubes beside it: a probe wants one'
      ' without'
    )
  try:
    model.embed(tf.zeros((1, *data.shape, 1)))
  except ValueError as error:
    raise errors.UserError(
      f'cubes of {data.shape} voxels of data set {data.data_dir} do not fit the'
      f' network: {error}'
    ) from error


def probe_classes(
  model,
  data: built_data.Data,
  split: str,
  batch_size: int,
  probe: str = NEIGHBOURS,
  neighbours: int = 5,
) -> Predictions:
  """Classifies by the embeddings alone; nothing of the network is trained.

  Args:
    model: with `embed`.
    data: of classes.
    split: to be classified, by the embeddings and classes of `train`.
    batch_size: cubes at a time.
    probe: NEIGHBOURS or LINEAR (logistic regression).
    neighbours: that vote, weighted by distance.

  Raises:
    UserError: the network cannot embed the cubes of the data, each by itself,
      or a class is missing.
  """
  _check_embeds(model, data)
  run = tf.function(model.embed)

  def embed(batch):
    embedding = run(batch['cube'])
    _check_finite(embedding)
    return {'label': batch['label'], 'embedding': embedding}

  rows = {
    one: _run(data, one, batch_size, embed)
    for one in dict.fromkeys((schema.TRAIN, split))
  }
  train = rows[schema.TRAIN]
  if len(np.unique(train['label'])) < len(data.classes):
    raise errors.UserError(
      f'data set {data.data_dir} lacks examples of a class in split train,'
      f' wanted some of each of {", ".join(data.classes)}'
    )
  if probe == LINEAR:
    last = linear_model.LogisticRegression(max_iter=5000)
  else:
    count = min(neighbours, len(train['label']))
    last = neighbors.KNeighborsClassifier(count, weights='distance')
  classifier = pipeline.make_pipeline(preprocessing.StandardScaler(), last)
  classifier.fit(train['embedding'], train['label'])
  embedding = rows[split].pop('embedding')
  return Predictions(
    probabilities=classifier.predict_proba(embedding), **rows[split]
  )


def measure_classes(
  predictions: Predictions,
  classes: Sequence[str],
  *,
  resamples: int = 1000,
  seed: int = 1,
) -> dict[str, Metric]:
  """Returns metrics of a classifier.

  Args:
    predictions: of `predict_classes`.
    classes: their names; of two, the second is what is looked for.
    resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    `auc` (one class against the rest, the mean of more than two), `accuracy`;
    of two classes also `average_precision` and `sensitivity_at_{n}` false
    positives per scan, and their mean over LUNA16's seven, `luna16_score`.
    These count the scans and the examples of the split alone: where its
    negatives are a sample, as by default in luna16_nodules, they are too good.

  Raises:
    UserError: a class has no example.
  """
  label, scores = predictions.label, predictions.probabilities
  for number, name in enumerate(classes):
    if not (label == number).any():
      raise errors.UserError(
        f'no example of class {name!r} in this split, wanted some of each'
      )

  def measure(rows, scans):
    return _classification_metrics(label[rows], scores[rows], scans)

  return _with_intervals(measure, predictions.scan_ids, resamples, seed)


def measure_masks(
  predictions: Predictions, *, resamples: int = 1000, seed: int = 1
) -> dict[str, Metric]:
  """Returns `iou`, `dice` and `mean_iou` over all voxels of a split.

  Args:
    predictions: of `predict_masks`.
    resamples: of the bootstrap.
    seed: of the bootstrap.
  """

  def measure(rows, scans):
    del scans
    counts = predictions.counts[rows].sum(axis=0)
    return target_tasks.summarize_counts(counts)

  return _with_intervals(measure, predictions.scan_ids, resamples, seed)


def sensitivities(
  label: np.ndarray, score: np.ndarray, scans: int
) -> np.ndarray:
  """Returns the share of positives found at FALSE_POSITIVES per scan.

  Each at the lowest threshold at which there are no more than that; equal
  scores are taken or left together.

  Args:
    label: (N,), 1 for what is looked for, else 0; some are 1.
    score: float (N,).
    scans: number of scans that the examples are of.

  Returns:
    float (7,).
  """
  negatives = np.count_nonzero(label == 0)
  if not negatives:
    return np.ones(len(FALSE_POSITIVES))
  false, true, _ = sklearn_metrics.roc_curve(
    label, score, drop_intermediate=False
  )
  # From (0, 0) on, both rise.
  allowed = np.multiply(FALSE_POSITIVES, scans)
  last = np.searchsorted(np.rint(false * negatives), allowed, side='right') - 1
  return true[last]


def _run(data, split, batch_size, function: Callable) -> dict:
  """Returns what a function makes of the batches, and whose examples they are.

  All are arrays (N, ...) by the names of `Predictions`.
  """
  rows, scan_ids = {}, []
  dataset = input_pipeline.make_dataset(data, split, batch_size, in_order=True)
  size = data.size(split)
  with damaged_data.explain(data, split):
    for batch in tqdm.tqdm(dataset, desc=split, disable=None, leave=False):
      found = function(batch)
      if _PLACE in batch:
        found['places'] = batch[_PLACE]
      for name, value in found.items():
        rows.setdefault(name, []).append(np.asarray(value))
      scan_ids += [one.decode() for one in batch['scan_id'].numpy()]
  # What filled the last batch goes.
  found = {name: np.concatenate(parts)[:size] for name, parts in rows.items()}
  return {'scan_ids': scan_ids[:size], **found}


def _check_finite(values) -> None:
  if not np.isfinite(values).all():
    raise errors.UserError(
      'the network gives values that are not finite: its training went wrong,'
      ' do it again with a lower train.learning_rate'
    )


def _classification_metrics(label, scores, scans) -> dict[str, float]:
  classes = scores.shape[1]
  # Of two, one against the other is the same either way.
  looked_for = [1] if classes == 2 else range(classes)
  areas = [_auc(label == one, scores[:, one]) for one in looked_for]
  found = {
    'auc': float(np.mean(areas)),
    'accuracy': float(np.mean(scores.argmax(axis=1) == label)),
  }
  if classes != 2:
    return found
  nan = float('nan')
  found['average_precision'], at = nan, np.full(len(FALSE_POSITIVES), nan)
  if label.any():
    positive = scores[:, 1]
    found['average_precision'] = float(
      sklearn_metrics.average_precision_score(label, positive)
    )
    at = sensitivities(label, positive, scans)
  for rate, value in zip(FALSE_POSITIVES, at, strict=True):
    found[f'sensitivity_at_{rate:g}'] = float(value)
  return found | {'luna16_score': float(np.mean(at))}


def _auc(is_class, score) -> float:
  if is_class.all() or not is_class.any():
    return float('nan')
  return float(sklearn_metrics.roc_auc_score(is_class, score))


def _with_intervals(measure, scan_ids, resamples, seed) -> dict[str, Metric]:
  """Returns metrics with percentile intervals by a bootstrap over scans.

  Scans, not examples, are drawn: examples of one patient are alike.
  """
  names, of_scan = np.unique(scan_ids, return_inverse=True)
  rows_of = [np.flatnonzero(of_scan == one) for one in range(len(names))]
  values = measure(np.arange(len(of_scan)), len(names))
  rng = np.random.default_rng(seed)
  drawn = []
  for _ in range(resamples if len(names) > 1 else 0):
    scans = rng.integers(0, len(names), len(names))
    rows = np.concatenate([rows_of[one] for one in scans])
    drawn.append(measure(rows, len(names)))
  tail = (1 - _CONFIDENCE) / 2
  metrics = {}
  for name, value in values.items():
    several = np.array([one[name] for one in drawn])
    several = several[np.isfinite(several)]
    low, high = (
      np.quantile(several, [tail, 1 - tail])
      if len(several)
      else (float('nan'), float('nan'))
    )
    metrics[name] = Metric(value, float(low), float(high))
  return metrics
