"""Single runs of a study."""

import json
import math
import shutil

import gin
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.study import runs as runs_lib
from transvw_tf2.training import label_fraction

_SMALL = (
  'unet3d.base_filters = 2',
  'train.epochs = 9',
  'boxes:train.epochs = 2',
  'train.learning_rate = 1e-2',
  'train.shuffle_buffer = 8',
)


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  return tiny_data.write_targets(tmp_path_factory.mktemp('targets'))


@pytest.fixture(autouse=True)
def _clear_gin():
  yield
  gin.clear_config()


@pytest.mark.long
def test_a_run_can_be_cut_off(data_dir, tmp_path, capsys):
  """What a run left behind when it was killed is gone on with."""
  whole, cut = (
    runs_lib.Plan(
      tasks={'boxes': runs_lib.open_task(data_dir)},
      starts={},
      parameters=_SMALL,
      folder=str(tmp_path / name),
    )
    for name in ('whole', 'cut')
  )
  run = runs_lib.Run('boxes', runs_lib.SCRATCH, 1.0, 3)
  shorter = runs_lib.Plan(
    cut.tasks, cut.starts, (*_SMALL, 'boxes:train.epochs = 1'), cut.folder
  )
  (begun,) = runs_lib.train_and_measure(shorter, run)
  assert begun['epochs'] == 1
  (found,) = runs_lib.train_and_measure(cut, run)
  (wanted,) = runs_lib.train_and_measure(whole, run)
  assert found['epochs'] == wanted['epochs'] == 2
  assert found['value'] == pytest.approx(wanted['value'], abs=0.02)
  assert 'resuming after epoch 1' in capsys.readouterr().out
  # Of both calls.
  assert found['seconds'] > begun['seconds'] > 0


class _BegunError(Exception):
  pass


def test_a_run_has_its_start_its_labels_and_its_seed(
  data_dir, tmp_path, monkeypatch
):
  def begin(workdir, strategy, settings):
    del workdir, strategy
    raise _BegunError(
      settings.start_from, settings.label_fraction, settings.seed
    )

  monkeypatch.setattr(runs_lib.loop, 'train', begin)
  plan = runs_lib.Plan(
    tasks={'boxes': runs_lib.open_task(data_dir)},
    starts={'words': '/pretrained'},
    parameters=_SMALL,
    folder=str(tmp_path),
  )
  for init, start in (('words', '/pretrained'), (runs_lib.SCRATCH, '')):
    with pytest.raises(_BegunError) as begun:
      runs_lib.train_and_measure(plan, runs_lib.Run('boxes', init, 0.5, 7))
    assert begun.value.args == (start, 0.5, 7)


def test_parameters_of_a_task_come_last():
  plan = runs_lib.Plan(
    tasks={'boxes': None, 'balls': None},
    starts={},
    parameters=('balls:a.b = 1', 'a.b = 2', 'boxes:a.b = 3', "a.c = 'x:y'"),
    folder='',
  )
  assert plan.parameters_of('boxes') == ['a.b = 2', "a.c = 'x:y'", 'a.b = 3']
  assert plan.parameters_of('balls') == ['a.b = 2', "a.c = 'x:y'", 'a.b = 1']


def test_data_without_targets_is_named(tmp_path):
  data_dir = tiny_data.write(tmp_path)
  with pytest.raises(errors.UserError, match='has neither labels nor masks'):
    runs_lib.open_task(data_dir)


def test_a_data_set_without_test_split_is_named(data_dir, tmp_path):
  folder = tmp_path / 'data'
  shutil.copytree(data_dir, folder)
  path = folder / 'dataset_info.json'
  info = json.loads(path.read_text())
  info['splits'] = [one for one in info['splits'] if one['name'] != 'test']
  path.write_text(json.dumps(info))
  with pytest.raises(errors.UserError, match='has no example in split test: '):
    runs_lib.open_task(str(folder))


def test_damaged_data_are_one_line(data_dir, tmp_path):
  folder = tmp_path / 'data'
  shutil.copytree(data_dir, folder)
  for text in ('{', '{}'):
    (folder / 'dataset_info.json').write_text(text)
    with pytest.raises(errors.UserError, match='cannot be opened') as raised:
      runs_lib.open_task(str(folder))
    assert '\n' not in str(raised.value)


def test_a_class_without_labels_is_told_before_the_first_run(tmp_path):
  """A patient has one class here, so that few patients may lack the other."""
  features = tfds.features.FeaturesDict(
    {
      'cube': tiny_data.make_volume(np.int16),
      'label': tfds.features.ClassLabel(names=['empty', 'box']),
      'scan_id': tfds.features.Text(),
    }
  )
  examples = {
    'cube': np.zeros((6, *tiny_data.CUBE_SHAPE), np.int16),
    'label': [0, 1, 0, 1, 0, 1],
    'scan_id': list('abcdef'),
  }
  splits = dict.fromkeys(('train', 'validation', 'test'), examples)
  path = tiny_data.write_splits(tmp_path, 'classes', splits, features, 1)
  plan = runs_lib.Plan({'boxes': runs_lib.open_task(path)}, {}, (), '')
  runs = [
    runs_lib.Run('boxes', runs_lib.SCRATCH, fraction, seed)
    for fraction in (0.1, 0.5, 1.0)
    for seed in (1, 2)
  ]
  with pytest.raises(errors.UserError) as raised:
    runs_lib.check_labels(plan, runs)
  text = str(raised.value)
  wrong = {
    run
    for run in runs
    if len({'ace'.find(one) < 0 for one in _patients(run)}) == 1
  }
  assert {(run.fraction, run.seed) for run in wrong} >= {(0.1, 1), (0.1, 2)}
  for run in runs:
    named = f' {run.fraction:g} with seed {run.seed} ' in text
    assert named == (run in wrong)
  runs_lib.check_labels(plan, [run for run in runs if run not in wrong])
  # Nor can be measured what a split has none of.
  few = {name: one[:1] for name, one in examples.items()}
  for split, rates in (('test', {}), ('validation', {'boxes': [0.1, 0.01]})):
    path = tiny_data.write_splits(
      tmp_path / split, 'classes', splits | {split: few}, features, 1
    )
    task = runs_lib.open_task(path)
    plan = runs_lib.Plan({'boxes': task}, {}, (), '', rates)
    with pytest.raises(
      errors.UserError, match=f"split {split} of .* no example of class 'box'"
    ):
      runs_lib.check_labels(plan, runs[-1:])


def _patients(run):
  return label_fraction.choose_patients('abcdef', run.fraction, run.seed)


def test_no_learning_rate_is_chosen_by_a_metric_that_is_not_defined(
  monkeypatch,
):
  plan = runs_lib.Plan(
    {'boxes': runs_lib.Task('', '', 'auc')}, {}, (), '', {'boxes': [0.1, 0.01]}
  )
  run = runs_lib.Run('boxes', runs_lib.SCRATCH, 1.0, 1)
  row = {'metric': 'auc', 'validation': math.nan}
  monkeypatch.setattr(runs_lib, '_train', lambda *_: dict(row))
  monkeypatch.setattr(runs_lib, '_measure', lambda *_: None)
  with pytest.raises(
    errors.UserError, match=r'boxes, .* auc of validation is '
  ):
    runs_lib.train_and_measure(plan, run)
  plan.learning_rates['boxes'] = [0.1]
  assert len(runs_lib.train_and_measure(plan, run)) == 1
