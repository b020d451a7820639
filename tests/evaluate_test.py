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
from unittest import mock

from absl.testing import flagsaver
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
  for output in (tmp_path / 'file', tmp_path / 'file' / 'report'):
    with (
      mock.patch.object(checkpoints, 'load_model') as load,
      pytest.raises(errors.UserError, match='file is no folder that can be'),
    ):
      evaluation_report.evaluate(
        str(runs / 'classes'), data_dir, str(output), resamples=0
      )
    assert not load.called  # before all work


def test_a_flag_of_another_probe_is_refused(import_main, tmp_path):
  main = import_main('transvw_tf2.evaluate')
  with (
    flagsaver.flagsaver(
      (main._PROBE, 'linear'), (main._OUTPUT, str(tmp_path / 'report'))
    ),
    flagsaver.as_parsed((main._NEIGHBOURS, '3')),
    pytest.raises(errors.UserError, match='--neighbours is for --probe neigh'),
  ):
    main.main([])
  assert not os.listdir(tmp_path)


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
  copy = str(tmp_path / 'masks.keras')
  checkpoints.load_model(str(runs / 'masks'))[0].save(copy)
  for name, workdir in (
    ('classes', str(runs / 'classes')),
    ('masks', str(runs / 'masks')),
    ('file', copy),
  ):
    found = evaluation_report.evaluate(
      workdir,
      data_dir,
      str(tmp_path / name),
      probe=probe,
      neighbours=3,
      resamples=0,
    )
    model, _ = checkpoints.load_model(workdir)
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
  with pytest.raises(errors.UserError, match='is a run of Pretrain, wanted'):
    evaluate(str(tmp_path / 'pretrained'), data_dir)
  model, _ = checkpoints.load_model(str(runs / 'classes'))
  model.save(str(tmp_path / 'file.keras'))
  with pytest.raises(errors.UserError, match='is no run, wanted one of'):
    evaluate(str(tmp_path / 'file.keras'), data_dir)
  with pytest.raises(errors.UserError, match='wanted also'):
    evaluate(str(runs / 'classes'), cubes)
  with pytest.raises(errors.UserError, match="in split 'none'"):
    evaluate(str(runs / 'classes'), data_dir, split='none')
  assert not (tmp_path / 'report').exists()


def test_a_probe_refuses_networks_that_cannot_embed(data_dir, tmp_path):
  evaluate = functools.partial(
    evaluation_report.evaluate,
    data_dir=data_dir,
    output=str(tmp_path / 'report'),
    probe='linear',
  )
  path = str(tmp_path / 'a.keras')
  for model, text in (
    (models.build_unet3d(base_filters=2, depth=5), 'do not fit the network'),
    (
      models.build_torch_visual_word_net(
        3, base_filters=2, depth=2, head_filters=4, batch_statistics=True
      ),
      'by the statistics of a batch',
    ),
  ):
    model.build((None, None, None, None, 1))
    model.save(path)
    with pytest.raises(errors.UserError, match=text) as raised:
      evaluate(path)
    assert '\n' not in str(raised.value)
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
