"""The transfer study: its runs, its statistics and its command."""

import json
import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pandas as pd
from PIL import Image
import pytest
from scipy import stats

from tests.training import tiny_data
from tools.transfer import plots
from tools.transfer import runs as runs_lib
from tools.transfer import tables
from transvw_tf2 import errors
from transvw_tf2.training import evaluation_report

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SMALL = (
  'classifier.base_filters = 2',
  'unet3d.base_filters = 2',
  'train.epochs = 9',
  'boxes:train.epochs = 2',
  'train.learning_rate = 1e-2',
  'train.shuffle_buffer = 8',
)


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  return tiny_data.write_targets(tmp_path_factory.mktemp('targets'))


def _rows(values, metric='auc'):
  """Returns rows of a study from values by (init, fraction)."""
  return pd.DataFrame(
    [
      {
        'task': 'nodules',
        'init': init,
        'fraction': fraction,
        'seed': seed,
        'metric': metric,
        'value': value,
        'epochs': 3,
        'best_epoch': 2,
        'seconds': 1.5,
      }
      for (init, fraction), of_seeds in values.items()
      for seed, value in enumerate(of_seeds, 1)
    ]
  )


_VALUES = {
  ('scratch', 0.1): [0.50, 0.60, 0.55],
  ('scratch', 1.0): [0.80, 0.82, 0.78],
  ('both', 0.1): [0.70, 0.74, 0.71],
  ('both', 0.5): [0.81, 0.83, 0.82],
  ('both', 1.0): [0.90, 0.91, 0.90],
  ('words', 0.1): [0.52, 0.61, 0.50],
}


def test_the_summary_is_a_paired_test_against_scratch():
  summary = tables.summarize(_rows(_VALUES)).set_index(['init', 'fraction'])
  assert len(summary) == len(_VALUES)
  for key, values in _VALUES.items():
    assert summary.loc[key, 'runs'] == 3
    assert summary.loc[key, 'mean'] == pytest.approx(np.mean(values))
    assert summary.loc[key, 'sd'] == pytest.approx(np.std(values, ddof=1))
  for key in (('both', 0.1), ('both', 1.0), ('words', 0.1)):
    one, scratch = np.array(_VALUES[key]), _VALUES['scratch', key[1]]
    # The closed form of the paired test.
    t = (one - scratch).mean() / (one - scratch).std(ddof=1) * np.sqrt(3)
    assert summary.loc[key, 'p'] == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert summary.loc[key, 'difference'] == pytest.approx(
      (one - scratch).mean()
    )
  for key in (('both', 0.5), ('scratch', 0.1)):
    assert np.isnan(summary.loc[key, 'p'])


def test_seeds_are_paired_by_number_not_by_place():
  rows = _rows(_VALUES)
  shuffled = rows.sample(frac=1.0, random_state=1)
  # A seed that only one of the two has does not count.
  shuffled = shuffled[
    ~((shuffled['init'] == 'scratch') & (shuffled['seed'] == 2))
  ]
  summary = tables.summarize(shuffled).set_index(['init', 'fraction'])
  wanted = stats.ttest_rel([0.70, 0.71], [0.50, 0.55]).pvalue
  assert summary.loc[('both', 0.1), 'p'] == pytest.approx(wanted)
  assert summary.loc[('both', 0.1), 'runs'] == 3


def test_the_table_says_with_how_few_labels_scratch_is_reached():
  text = tables.to_markdown(tables.summarize(_rows(_VALUES)))
  lines = text.splitlines()
  assert lines[0] == (
    '| nodules, AUC | 10 % of the labels | 50 % of the labels | 100 % of the'
    ' labels |'
  )
  assert lines[2].startswith('| scratch | 0.550 ± 0.050 |  | 0.800 ± 0.020 |')
  p = stats.ttest_rel(*(_VALUES[one, 0.1] for one in ('both', 'scratch')))
  assert f'| both | 0.717 ± 0.021 (p = {p.pvalue:.2g}) |' in lines[3]
  assert 'both reaches scratch with all labels (0.800) with 50 % of them.' in (
    lines
  )
  assert 'words does not reach scratch with all labels (0.800).' in lines


def test_plots_show_every_init_and_fraction(tmp_path):
  summary = tables.summarize(_rows(_VALUES))
  drawn = plots.draw_fractions(summary)
  (axes,) = drawn.axes
  assert axes.get_legend_handles_labels()[1] == ['scratch', 'both', 'words']
  assert [one.get_text() for one in axes.get_xticklabels()] == [
    '10',
    '50',
    '100',
  ]
  drawn = plots.draw_learning_curves(
    'nodules, AUC',
    {
      (0.1, 'both'): [[0.1, 0.2, 0.3], [0.3, 0.4]],
      (1.0, 'scratch'): [[0.2, 0.5]],
    },
  )
  tenth, whole = drawn.axes
  (line,) = tenth.lines
  np.testing.assert_allclose(line.get_ydata(), [0.2, 0.3])
  assert [one.get_label() for one in whole.lines] == ['scratch']
  plots.save(str(tmp_path / 'curves.png'), drawn)
  with Image.open(tmp_path / 'curves.png') as picture:
    assert min(picture.size) > 300


def test_a_table_of_something_else_is_named(tmp_path):
  path = tmp_path / 'rows.csv'
  assert tables.read_rows(str(path)).empty
  path.write_text('a,b\n1,2\n')
  with pytest.raises(errors.UserError, match=r'rows\.csv is not the table of'):
    tables.read_rows(str(path))


def _run(data_dir, folder, *more):
  return subprocess.run(
    [
      *(sys.executable, 'tools/transfer_study.py', f'--output={folder}'),
      *(f'--data=boxes={data_dir}', '--fractions=0.5', '--processes=2'),
      *(f'--gin_param={one}' for one in _SMALL),
      *more,
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_trains_measures_and_goes_on(data_dir, tmp_path):
  folder = tmp_path / 'study'
  done = _run(data_dir, folder, '--seeds=1')
  assert done.returncode == 0, done.stderr
  rows = tables.read_rows(str(folder / 'rows.csv'))
  assert list(rows['init']) == ['scratch']
  assert (rows['epochs'] == 2).all()
  workdir = folder / 'runs' / 'boxes' / 'scratch' / 'fraction_0.5' / 'seed_1'
  assert (workdir / 'history.csv').exists()
  assert not (workdir / 'checkpoints').exists()
  log = (workdir / 'log.txt').read_text()
  assert 'epoch 2: ' in log
  assert 'Traceback' not in log
  with open(
    workdir / 'test' / evaluation_report.METRICS_FILE, encoding='utf-8'
  ) as file:
    measured = json.load(file)
  # The data has masks, so it is a segmentation.
  assert rows['value'][0] == measured['metrics']['iou']['value']
  assert measured['split'] == 'test'
  # A second seed is added; the first is not trained again.
  before = (workdir / 'history.csv').stat().st_mtime_ns
  done = _run(data_dir, folder, '--seeds=2')
  assert done.returncode == 0, done.stderr
  assert '1 of 2 runs are there' in done.stdout
  assert (workdir / 'history.csv').stat().st_mtime_ns == before
  again = tables.read_rows(str(folder / 'rows.csv'))
  assert list(again['seed']) == [1, 2]
  assert again['value'][0] == rows['value'][0]
  assert '| boxes, IoU | 50 % of the labels |' in done.stdout
  for name in ('summary.md', 'summary.csv', 'fractions.png'):
    assert (folder / name).exists()
  assert (folder / 'learning_curves_boxes.png').exists()


@pytest.fixture(name='study')
def _study_in_process(import_main, data_dir, tmp_path):
  """Calls the main with flags, as parsed."""
  module = import_main('tools.transfer_study')

  def run(**flags):
    flags = {
      'data': [f'boxes={data_dir}'],
      'output': str(tmp_path / 'study'),
      'fractions': ['0.5'],
      'seeds': 1,
      'gin_param': list(_SMALL),
    } | flags
    with flagsaver.flagsaver(**flags):
      module.main([])

  return run


@pytest.mark.parametrize(
  ('flags', 'text'),
  [
    ({'init': ['scratch=.']}, '--init must be NAME=PATH, the name of letters'),
    ({'init': ['both']}, 'and not scratch, got both'),
    ({'init': ['both=/none']}, '--init both=/none: /none does not exist; want'),
    ({'init': ['both=.', 'both=.']}, '--init both is given twice'),
    ({'data': ['boxes=.']}, 'no data set .no dataset_info.json. at or below'),
    ({'fractions': ['0.1', '2']}, "--fractions has '2', wanted numbers above"),
    ({'fractions': ['x']}, "--fractions has 'x'"),
  ],
)
def test_wrong_flags_are_named(study, tmp_path, monkeypatch, flags, text):
  (tmp_path / 'empty').mkdir()
  monkeypatch.chdir(tmp_path / 'empty')
  with pytest.raises(errors.UserError, match=text):
    study(**flags)
  assert os.listdir(tmp_path) == ['empty']


def test_a_folder_holds_one_study(study, tmp_path):
  folder = tmp_path / 'study'
  folder.mkdir()
  settings = {'gin_param': ['train.epochs = 9'], 'data': {}, 'init': {}}
  (folder / 'study.json').write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match='holds a study with --gin_param'):
    study()
  settings |= {'gin_param': list(_SMALL), 'data': {'boxes': '/elsewhere'}}
  (folder / 'study.json').write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match='--data boxes /elsewhere, now it'):
    study()
  assert os.listdir(folder) == ['study.json']


def test_a_run_that_fails_is_named(study, tmp_path):
  (tmp_path / 'empty').mkdir()
  text = r'boxes, both, 50 % of the labels, seed 1: .*no model\.json in workdir'
  with pytest.raises(errors.UserError, match=text):
    study(init=[f'both={tmp_path / "empty"}'])


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
  assert runs_lib.train_and_measure(shorter, run)['epochs'] == 1
  found = runs_lib.train_and_measure(cut, run)
  wanted = runs_lib.train_and_measure(whole, run)
  assert found['epochs'] == wanted['epochs'] == 2
  assert found['value'] == pytest.approx(wanted['value'], abs=0.02)
  assert 'resuming after epoch 1' in capsys.readouterr().out
