"""Metrics of a network on a split, by the main and by hand."""

import csv
import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from sklearn import linear_model
from sklearn import metrics as sklearn_metrics
from sklearn import neighbors
from sklearn import pipeline
from sklearn import preprocessing
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import devices
from transvw_tf2.training import evaluation
from transvw_tf2.training import evaluation_report
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import loop
from transvw_tf2.training import target_tasks


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  return tiny_data.write_targets(tmp_path_factory.mktemp('targets'))


@pytest.fixture(scope='module', name='runs')
def _runs(data_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  sizes = {'base_filters': 2, 'depth': 2}
  tasks = {
    'classes': functools.partial(
      target_tasks.Classification,
      functools.partial(models.build_classifier, **sizes),
    ),
    'masks': functools.partial(
      target_tasks.Segmentation, functools.partial(models.build_unet3d, **sizes)
    ),
  }
  for name, task in tasks.items():
    loop.train(
      str(folder / name),
      devices.make_strategy('cpu'),
      tiny_data.make_settings(
        data_dir, task=task, epochs=6, learning_rate=1e-2
      ),
    )
  return folder


def _read_examples(data_dir, split):
  """Returns the cubes as a network takes them, and all else, as TFDS reads."""
  builder = tfds.builder_from_directory(data_dir)
  dataset = builder.as_dataset(split=split, batch_size=-1)
  examples = tfds.as_numpy(dataset)
  cubes = schema.scale_hu(examples.pop('cube')[..., np.newaxis])
  return np.asarray(cubes, np.float32), examples


def _read_predictions(folder, places):
  """Returns columns of predictions.csv, in the order of the places."""
  with open(folder / 'predictions.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  # No two examples lie at one place, which is written to the last digit.
  by_place = {tuple(float(row[axis]) for axis in 'xyz'): row for row in rows}
  assert sorted(by_place) == sorted(map(tuple, places.tolist()))
  assert len(rows) == len(places)
  rows = [by_place[tuple(place)] for place in places.tolist()]
  return {name: [row[name] for row in rows] for name in rows[0]}


def _assert_close(found, want):
  """Compares metrics and their intervals."""
  assert list(found) == list(want)
  for name, metric in found.items():
    assert dataclasses.astuple(metric) == pytest.approx(
      dataclasses.astuple(want[name]), rel=1e-3
    )


def test_classes_equal_scikit_learn(runs, data_dir, tmp_path):
  output = tmp_path / 'report'
  found = evaluation_report.evaluate(
    str(runs / 'classes'), data_dir, str(output), batch_size=4, resamples=50
  )
  # By the network itself, all cubes at once.
  cubes, examples = _read_examples(data_dir, 'test')
  model, _ = checkpoints.load_model(str(runs / 'classes'))
  scores = model(cubes)['probabilities'].numpy()
  columns = _read_predictions(output, examples['place'])
  np.testing.assert_allclose(
    np.array(columns['box'], float), scores[:, 1], rtol=1e-4, atol=1e-6
  )
  assert [('empty', 'box')[one] for one in examples['label']] == (
    columns['label']
  )
  assert [one.decode() for one in examples['scan_id']] == columns['scan_id']
  want = sklearn_metrics.roc_auc_score(examples['label'], scores[:, 1])
  assert found['auc'].value == pytest.approx(want)
  assert found['auc'].low <= found['auc'].value <= found['auc'].high
  with open(output / 'metrics.json', encoding='utf-8') as file:
    written = json.load(file)
  assert written['metrics']['auc']['value'] == found['auc'].value
  assert (written['examples'], written['scans']) == (10, 5)
  assert (written['checkpoint'], written['neighbours']) == ('best', None)
  with Image.open(output / 'roc.png') as picture:
    assert min(picture.size) > 300


def test_data_without_places_have_predictions_without(runs, tmp_path):
  data_dir = tiny_data.write_targets(tmp_path, places=False)
  output = tmp_path / 'report'
  evaluation_report.evaluate(
    str(runs / 'classes'), data_dir, str(output), resamples=0
  )
  with open(output / 'predictions.csv', encoding='utf-8') as file:
    header = next(csv.reader(file))
  assert header == ['scan_id', 'label', 'empty', 'box']


def test_the_command_prints_the_metrics(runs, data_dir, tmp_path):
  # Without a best checkpoint, only the latest can be measured.
  run = tmp_path / 'run'
  shutil.copytree(runs / 'classes', run)
  shutil.rmtree(run / checkpoints.FOLDER / checkpoints.BEST)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'transvw_tf2.evaluate'),
      *(f'--workdir={run}', f'--data={data_dir}'),
      *(f'--output={tmp_path / "report"}', '--split=train'),
      *('--checkpoint=latest', '--probe=neighbours', '--neighbours=3'),
      *('--batch_size=16', '--resamples=10', '--seed=7'),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert re.search(r'^auc \d\.\d{4} \(95 % CI ', done.stdout, re.MULTILINE)
  assert sorted(os.listdir(tmp_path / 'report')) == [
    'metrics.json',
    'predictions.csv',
    'roc.png',
  ]
  with open(tmp_path / 'report' / 'metrics.json', encoding='utf-8') as file:
    written = json.load(file)
  del written['metrics']
  assert written == {
    'workdir': str(run),
    'checkpoint': 'latest',
    'epoch': 6,
    'data': data_dir,
    'split': 'train',
    # All, though the last batch is not full.
    'examples': 24,
    'scans': 6,
    'probe': 'neighbours',
    'neighbours': 3,
    'resamples': 10,
    'seed': 7,
  }


def test_a_report_that_cannot_be_written_is_one_line(runs, data_dir, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(errors.UserError, match='cannot be made'):
    evaluation_report.evaluate(
      str(runs / 'classes'), data_dir, str(tmp_path / 'file'), resamples=0
    )


def test_masks_equal_numpy(runs, data_dir, tmp_path):
  output = tmp_path / 'report'
  found = evaluation_report.evaluate(
    *(str(runs / 'masks'), data_dir, str(output)),
    batch_size=4,
    resamples=50,
    seed=3,
  )
  data = built_data.open_data(data_dir, ('cube', 'mask'))
  (batch,) = input_pipeline.make_dataset(data, 'test', 10)
  model, _ = checkpoints.load_model(str(runs / 'masks'))
  named = model(batch['cube']).numpy() >= 0.5
  true = batch['mask'].numpy() > 0
  want = (true & named).sum() / (true | named).sum()
  assert found['iou'].value == pytest.approx(want, rel=1e-3)
  assert found['iou'].low <= want <= found['iou'].high
  predictions = evaluation.predict_masks(
    model, evaluation.open_data(data_dir, 'mask'), 'test', batch_size=4
  )
  _assert_close(
    found, evaluation.measure_masks(predictions, resamples=50, seed=3)
  )
  with Image.open(output / 'overlays.png') as picture:
    assert min(picture.size) > 200


def test_what_fills_the_last_batch_is_not_drawn(data_dir):
  data = evaluation.open_data(data_dir, 'mask')
  found = evaluation.predict_masks(
    lambda cubes, training: cubes, data, 'test', batch_size=16
  )
  # Of the ten examples every other one has a structure.
  assert len(found.pictures['cubes']) == 5


def _probe_by_hand(embed, data_dir, probe):
  """Returns probabilities of split test, by its neighbours or a line."""
  last = {
    'linear': linear_model.LogisticRegression(max_iter=5000),
    'neighbours': neighbors.KNeighborsClassifier(3, weights='distance'),
  }[probe]
  classifier = pipeline.make_pipeline(preprocessing.StandardScaler(), last)
  cubes, examples = _read_examples(data_dir, 'train')
  classifier.fit(np.asarray(embed(cubes)), examples['label'])
  cubes, examples = _read_examples(data_dir, 'test')
  return classifier.predict_proba(np.asarray(embed(cubes))), examples


@pytest.mark.parametrize('probe', evaluation.PROBES)
def test_probes_classify_by_embeddings(probe, runs, data_dir, tmp_path):
  # Also those of a network that was trained for something else.
  for name in ('classes', 'masks'):
    found = evaluation_report.evaluate(
      str(runs / name),
      data_dir,
      str(tmp_path / name),
      probe=probe,
      neighbours=3,
      resamples=0,
    )
    model, _ = checkpoints.load_model(str(runs / name))
    scores, examples = _probe_by_hand(model.embed, data_dir, probe)
    columns = _read_predictions(tmp_path / name, examples['place'])
    np.testing.assert_allclose(
      np.array(columns['box'], float), scores[:, 1], atol=1e-3
    )
    assert found['auc'].value > 0.8
    assert np.isnan(found['auc'].low)


@pytest.mark.parametrize('probe', evaluation.PROBES)
def test_probes_learn_from_train_alone(
  probe, runs, data_dir, tmp_path, monkeypatch
):
  model, description = checkpoints.load_model(str(runs / 'classes'))

  # Noise tells little of the classes: each neighbour counts, and examples that
  # were learnt themselves would be known too well.
  def embed(cubes):
    return cubes[:, 0, 0, :, 0]

  monkeypatch.setattr(model, 'embed', embed)
  monkeypatch.setattr(
    checkpoints, 'load_model', lambda *_: (model, description)
  )
  found = evaluation_report.evaluate(
    *(str(runs / 'classes'), data_dir, str(tmp_path)),
    probe=probe,
    neighbours=3,
    resamples=20,
    seed=7,
  )
  scores, examples = _probe_by_hand(embed, data_dir, probe)
  columns = _read_predictions(tmp_path, examples['place'])
  np.testing.assert_allclose(
    np.array(columns['box'], float), scores[:, 1], atol=1e-4
  )
  want = evaluation.measure_classes(
    evaluation.Predictions(
      scan_ids=columns['scan_id'],
      label=examples['label'],
      probabilities=scores,
    ),
    ('empty', 'box'),
    resamples=20,
    seed=7,
  )
  assert found['auc'].low < found['auc'].high
  _assert_close(found, want)


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
  names = ('auc', 'accuracy', 'average_precision')
  _assert_close(
    {name: several[name] for name in names},
    {name: once[name] for name in names},
  )
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


def test_refuses_other_runs_and_data(runs, data_dir, tmp_path):
  evaluate = functools.partial(
    evaluation_report.evaluate, output=str(tmp_path / 'report')
  )
  cubes = tiny_data.write(tmp_path / 'cubes')
  loop.train(
    str(tmp_path / 'pretrained'),
    devices.make_strategy('cpu'),
    tiny_data.make_settings(cubes, epochs=1),
  )
  with pytest.raises(errors.UserError, match='is a run of Pretrain'):
    evaluate(str(tmp_path / 'pretrained'), data_dir)
  with pytest.raises(errors.UserError, match='wanted also'):
    evaluate(str(runs / 'classes'), cubes)
  with pytest.raises(errors.UserError, match="in split 'none'"):
    evaluate(str(runs / 'classes'), data_dir, split='none')
  assert not (tmp_path / 'report').exists()


def test_refuses_cubes_of_another_shape(runs, data_dir, tmp_path):
  copy = tmp_path / 'run'
  shutil.copytree(runs / 'classes', copy)
  path = copy / checkpoints.DESCRIPTION_FILE
  description = json.loads(path.read_text())
  path.write_text(json.dumps(description | {'shape': [32, 32, 16]}))
  report = str(tmp_path / 'report')
  text = r'on cubes of \[32, 32, 16\] voxels, .* has \[16, 16, 8\]'
  with pytest.raises(errors.UserError, match=text):
    evaluation_report.evaluate(str(copy), data_dir, report)
  assert not (tmp_path / 'report').exists()
  # Embeddings can be had of any.
  evaluation_report.evaluate(
    str(copy), data_dir, report, probe=evaluation.NEIGHBOURS, resamples=0
  )


@pytest.mark.parametrize('probe', [None, evaluation.LINEAR])
def test_a_broken_network_is_named(
  runs, data_dir, tmp_path, monkeypatch, probe
):
  model, description = checkpoints.load_model(str(runs / 'classes'))
  for variable in model.trainable_variables:
    variable.assign(variable * float('nan'))
  # Some convolutions take NaN for 0.
  monkeypatch.setattr(
    model, 'embed', lambda cubes: tf.fill((len(cubes), 4), float('nan'))
  )
  monkeypatch.setattr(
    checkpoints, 'load_model', lambda *_: (model, description)
  )
  with pytest.raises(errors.UserError, match='values that are not finite'):
    evaluation_report.evaluate(
      str(runs / 'classes'), data_dir, str(tmp_path / 'report'), probe=probe
    )
