"""Metrics of a network on a split, by the main and by hand."""

import csv
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
from sklearn import metrics as sklearn_metrics
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
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


def test_classes_equal_scikit_learn(runs, data_dir, tmp_path):
  output = tmp_path / 'report'
  found = evaluation_report.evaluate(
    str(runs / 'classes'), data_dir, str(output), batch_size=4, resamples=50
  )
  with open(output / 'predictions.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 10
  # By the network itself, all cubes at once.
  data = built_data.open_data(data_dir, ('cube', 'label', 'scan_id', 'place'))
  (batch,) = input_pipeline.make_dataset(data, 'test', 10)
  model, _ = checkpoints.load_model(str(runs / 'classes'))
  scores = model(batch['cube'])['probabilities'].numpy()
  np.testing.assert_allclose(
    [float(row['box']) for row in rows], scores[:, 1], rtol=1e-4, atol=1e-6
  )
  assert [row['label'] == 'box' for row in rows] == list(batch['label'] == 1)
  places = [[float(row[axis]) for axis in 'xyz'] for row in rows]
  np.testing.assert_array_equal(places, batch['place'])
  want = sklearn_metrics.roc_auc_score(batch['label'], scores[:, 1])
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
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'transvw_tf2.evaluate'),
      *(f'--workdir={runs / "classes"}', f'--data={data_dir}'),
      *(f'--output={tmp_path / "report"}', '--resamples=10'),
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


def test_a_report_that_cannot_be_written_is_one_line(runs, data_dir, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(errors.UserError, match='cannot be made'):
    evaluation_report.evaluate(
      str(runs / 'classes'), data_dir, str(tmp_path / 'file'), resamples=0
    )


def test_masks_equal_numpy(runs, data_dir, tmp_path):
  output = tmp_path / 'report'
  found = evaluation_report.evaluate(
    str(runs / 'masks'), data_dir, str(output), batch_size=4, resamples=50
  )
  data = built_data.open_data(data_dir, ('cube', 'mask'))
  (batch,) = input_pipeline.make_dataset(data, 'test', 10)
  model, _ = checkpoints.load_model(str(runs / 'masks'))
  named = model(batch['cube']).numpy() >= 0.5
  true = batch['mask'].numpy() > 0
  want = (true & named).sum() / (true | named).sum()
  assert found['iou'].value == pytest.approx(want, rel=1e-3)
  assert found['iou'].low <= want <= found['iou'].high
  with Image.open(output / 'overlays.png') as picture:
    assert min(picture.size) > 200


def test_what_fills_the_last_batch_is_not_drawn(data_dir):
  data = evaluation.open_data(data_dir, 'mask')
  found = evaluation.predict_masks(
    lambda cubes, training: cubes, data, 'test', batch_size=16
  )
  # Of the ten examples every other one has a structure.
  assert len(found.pictures['cubes']) == 5


@pytest.mark.parametrize('probe', evaluation.PROBES)
def test_probes_classify_by_embeddings(probe, runs, data_dir, tmp_path):
  # Also those of a network that was trained for something else.
  for name in ('classes', 'masks'):
    found = evaluation_report.evaluate(
      str(runs / name),
      data_dir,
      str(tmp_path / name),
      probe=probe,
      resamples=0,
    )
    assert found['auc'].value > 0.8
    assert np.isnan(found['auc'].low)


def test_sensitivity_by_brute_force():
  rng = np.random.default_rng(0)
  for _ in range(20):
    label = rng.integers(0, 2, 30)
    label[0] = 1
    score = rng.integers(0, 8, 30) / 8
    for scans in (1, 3, 10):
      want = np.zeros(7)
      for threshold in [*np.unique(score), 2.0]:
        above = score >= threshold
        found = (above & (label == 1)).sum() / label.sum()
        allowed = (above & (label == 0)).sum() <= scans * np.array(
          evaluation.FALSE_POSITIVES
        )
        want = np.where(allowed, np.maximum(want, found), want)
      got = evaluation.sensitivities(label, score, scans)
      np.testing.assert_allclose(got, want)
  assert evaluation.sensitivities(np.ones(3), np.ones(3), 1).min() == 1


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
