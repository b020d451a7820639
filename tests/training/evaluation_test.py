"""Metrics of predictions and their intervals, by brute force."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from transvw_tf2 import errors
from transvw_tf2.training import evaluation


def _count_by_brute_force(label, score):
  """Gives (found, false) of the examples above each threshold, from the top."""
  for threshold in [2.0, *np.unique(score)[::-1]]:
    above = score >= threshold
    yield (above & (label == 1)).sum(), (above & (label == 0)).sum()


def _sensitivities_by_brute_force(label, score, scans):
  want = np.zeros(7)
  for found, false in _count_by_brute_force(label, score):
    allowed = false <= scans * np.array([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8])
    want = np.where(allowed, np.maximum(want, found / label.sum()), want)
  return want


def test_sensitivity_by_brute_force():
  rng = np.random.default_rng(0)
  for _ in range(20):
    label = rng.integers(0, 2, 30)
    label[0] = 1
    score = rng.integers(0, 8, 30) / 8
    for scans in (1, 3, 10):
      want = _sensitivities_by_brute_force(label, score, scans)
      got = evaluation.sensitivities(label, score, scans)
      np.testing.assert_allclose(got, want)
  assert evaluation.sensitivities(np.ones(3), np.ones(3), 1).min() == 1


def _measure(scan_ids, label, positive, resamples):
  return evaluation.measure_classes(
    evaluation.Predictions(
      scan_ids=scan_ids,
      label=label,
      probabilities=np.stack([1 - positive, positive], axis=1),
    ),
    ('no', 'yes'),
    resamples=resamples,
  )


def test_all_metrics_of_two_classes_by_brute_force():
  rng = np.random.default_rng(5)
  # Of twelve scans with ten examples each, some of one score.
  scan_ids = [str(one % 12) for one in range(120)]
  label = (rng.random(120) < 0.2).astype(int)
  positive = np.clip(rng.normal(0.3 + 0.2 * label, 0.2), 0, 1).round(2)
  found = _measure(scan_ids, label, positive, resamples=0)
  differences = positive[label == 1][:, np.newaxis] - positive[label == 0]
  average_precision = recall = 0.0
  for true, false in list(_count_by_brute_force(label, positive))[1:]:
    average_precision += (true / label.sum() - recall) * true / (true + false)
    recall = true / label.sum()
  sensitivities = _sensitivities_by_brute_force(label, positive, 12)
  assert len(set(sensitivities)) > 4
  want = {
    'auc': (np.sign(differences) + 1).mean() / 2,
    'accuracy': ((positive > 0.5) == label).mean(),
    'average_precision': average_precision,
    'sensitivity_at_0.125': sensitivities[0],
    'sensitivity_at_0.25': sensitivities[1],
    'sensitivity_at_0.5': sensitivities[2],
    'sensitivity_at_1': sensitivities[3],
    'sensitivity_at_2': sensitivities[4],
    'sensitivity_at_4': sensitivities[5],
    'sensitivity_at_8': sensitivities[6],
    'luna16_score': sensitivities.mean(),
  }
  assert {name: one.value for name, one in found.items()} == pytest.approx(want)


def test_metrics_of_three_classes_equal_scikit_learn():
  rng = np.random.default_rng(6)
  label = np.arange(60) % 3
  scores = rng.random((60, 3)) + 0.3 * np.eye(3)[label]
  scores /= scores.sum(axis=1, keepdims=True)
  found = evaluation.measure_classes(
    evaluation.Predictions(
      scan_ids=['a'] * 60, label=label, probabilities=scores
    ),
    ('a', 'b', 'c'),
    resamples=0,
  )
  assert {name: one.value for name, one in found.items()} == pytest.approx(
    {
      'auc': sklearn_metrics.roc_auc_score(label, scores, multi_class='ovr'),
      'accuracy': sklearn_metrics.accuracy_score(label, scores.argmax(axis=1)),
    }
  )


def test_intervals_are_those_of_scans_not_of_examples():
  rng = np.random.default_rng(8)
  scan_ids = np.array([f'{one:02d}' for one in range(30)])
  label = np.arange(30) % 2
  positive = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1).round(2)
  once = _measure(scan_ids, label, positive, resamples=100)
  # Eight examples of a scan that are all alike tell no more than one.
  often = [np.tile(one, 8) for one in (scan_ids, label, positive)]
  several = _measure(*often, resamples=100)
  # The others count false positives per scan, of which there are more.
  for name in ('auc', 'accuracy', 'average_precision'):
    found, want = (dataclasses.astuple(one[name]) for one in (several, once))
    assert found == pytest.approx(want, rel=1e-3), name
  # A share of 30, as normally distributed.
  share = once['accuracy'].value
  width = 2 * 1.96 * np.sqrt(share * (1 - share) / 30)
  found = once['accuracy'].high - once['accuracy'].low
  assert found == pytest.approx(width, rel=0.25)


def test_scans_that_are_alike_have_intervals_of_no_width():
  label = np.array([1, 0, 1, 0, 0, 1, 0, 0])
  positive = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
  found = _measure(
    np.repeat(np.arange(10).astype(str), 8),
    *(np.tile(one, 10) for one in (label, positive)),
    resamples=20,
  )
  # One false positive per scan, the scans as often as they are drawn.
  assert found['sensitivity_at_1'].value == pytest.approx(2 / 3)
  for one in found.values():
    assert one.low == pytest.approx(one.value)
    assert one.high == pytest.approx(one.value)


@pytest.mark.long
def test_intervals_cover_the_truth_about_as_often_as_they_say():
  # Scores whose AUC is known: N(0, 1) against N(1, 1) gives Phi(1 / sqrt 2).
  truth, covered = 0.7602, 0
  rng = np.random.default_rng(3)
  for trial in range(40):
    label = np.tile([0, 1], 60)
    score = rng.normal(size=120) + label
    positive = 1 / (1 + np.exp(-score))
    found = evaluation.measure_classes(
      evaluation.Predictions(
        scan_ids=[str(one // 4) for one in range(120)],
        label=label,
        probabilities=np.stack([1 - positive, positive], axis=1),
      ),
      ('no', 'yes'),
      resamples=80,
      seed=trial,
    )['auc']
    covered += found.low <= truth <= found.high
  assert 34 <= covered <= 40


def test_a_class_without_examples_is_named():
  found = evaluation.Predictions(
    scan_ids=['a', 'b'], label=np.zeros(2, int), probabilities=np.ones((2, 2))
  )
  with pytest.raises(errors.UserError, match="no example of class 'yes'"):
    evaluation.measure_classes(found, ('no', 'yes'))
