"""The transfer study: its runs, its statistics and its command."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

from absl.testing import flagsaver
import pandas as pd
import pytest

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import output_lock
from transvw_tf2.study import tables
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


def _begin(parent, processes):
  del parent, processes


def _be_killed(plan, run):
  """Stands for a training that runs out of memory."""
  del plan, run
  os.kill(os.getpid(), signal.SIGKILL)


def _fail(plan, run):
  """Stands for a training whose data are wrong, beside a long one."""
  del plan
  if run.seed == 1:
    raise errors.UserError('wrong data')
  time.sleep(120)


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  return tiny_data.write_targets(tmp_path_factory.mktemp('targets'))


@pytest.fixture(name='study')
def _study_in_process(import_main, data_dir, tmp_path, monkeypatch):
  """Calls the main with flags, as parsed."""
  module = import_main('tools.transfer_study')

  def run(runs_of_a_process=12, **flags):
    monkeypatch.setattr(module, '_RUNS_OF_A_PROCESS', runs_of_a_process)
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


def test_it_trains_measures_and_goes_on(study, tmp_path, capsys):
  folder = tmp_path / 'study'
  study()
  rows = tables.read_rows(str(folder / 'rows.csv'))
  assert list(rows['init']) == ['scratch']
  assert (rows['epochs'] == 2).all()
  run = folder / 'runs' / 'boxes' / 'scratch' / 'fraction_0.5' / 'seed_1'
  workdir = run / 'learning_rate_0.01'
  assert (workdir / 'history.csv').exists()
  assert not (workdir / 'checkpoints').exists()
  log = (run / 'log.txt').read_text()
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
  capsys.readouterr()
  study(seeds=2)
  out = capsys.readouterr().out
  assert '1 of 2 runs are there' in out
  assert (workdir / 'history.csv').stat().st_mtime_ns == before
  again = tables.read_rows(str(folder / 'rows.csv'))
  assert list(again['seed']) == [1, 2]
  assert again['value'][0] == rows['value'][0]
  assert '| boxes, IoU | 50 % of the labels |' in out
  for name in ('summary.md', 'summary.csv', 'fractions.png'):
    assert (folder / name).exists()
  assert (folder / 'learning_curves_boxes.png').exists()


def test_the_learning_rate_is_chosen_on_validation(study, tmp_path, capsys):
  # The first changes nothing, so the second has to be better.
  study(learning_rates=['boxes=1e-9,1e-2'])
  folder = tmp_path / 'study'
  networks = tables.read_rows(str(folder / 'rows.csv'))
  assert list(networks['learning_rate']) == [1e-9, 1e-2]
  rows = tables.measured(networks).reset_index()
  assert list(rows['learning_rate']) == [1e-2]
  summary = (folder / 'summary.md').read_text()
  assert '| validation of boxes, IoU, 50 % of the labels |' in summary
  assert capsys.readouterr().out.startswith('[1/1] boxes, scratch, 50 % of ')
  run = folder / 'runs' / 'boxes' / 'scratch' / 'fraction_0.5' / 'seed_1'
  best = {}
  for rate in ('1e-09', '0.01'):
    workdir = run / f'learning_rate_{rate}'
    assert not (workdir / 'checkpoints').exists()
    history = pd.read_csv(workdir / 'history.csv')
    lowest_loss = history['validation/loss'].argmin()
    best[rate] = history['validation/iou'][lowest_loss]
    (network,) = networks[networks['learning_rate'] == float(rate)].itertuples()
    assert network.validation == pytest.approx(best[rate])
  assert best['0.01'] > best['1e-09']
  # What was not chosen never saw the test split.
  assert not (run / 'learning_rate_1e-09' / 'test').exists()
  with open(
    run / 'learning_rate_0.01' / 'test' / evaluation_report.METRICS_FILE,
    encoding='utf-8',
  ) as file:
    measured = json.load(file)
  assert rows['value'][0] == measured['metrics']['iou']['value']


@pytest.mark.parametrize(
  ('flags', 'text'),
  [
    ({'init': ['scratch=.']}, '--init must be NAME=PATH, the name of letters'),
    ({'init': ['both']}, 'and not scratch, got both'),
    (
      {'init': ['both=/none']},
      '--init both=/none: /none does not exist; wanted the --w',
    ),
    ({'init': ['both=.', 'both=.']}, '--init both is given twice'),
    ({'data': ['boxes=.']}, 'no data set .no dataset_info.json. at or below'),
    ({'fractions': ['0.1', '2']}, "--fractions has '2', wanted numbers above"),
    ({'fractions': ['x']}, "--fractions has 'x'"),
    ({'learning_rates': ['balls=1']}, 'balls=1: wanted .* one of boxes and'),
    ({'learning_rates': ['boxes=0.1,0']}, 'boxes=0.1,0: wanted NAME=RATE,RATE'),
    ({'learning_rates': ['boxes=']}, '--learning_rates boxes=: wanted'),
    ({'learning_rates': ['boxes=inf']}, 'the rates above 0'),
    ({'learning_rates': ['boxes=1', 'boxes=2']}, 'boxes is given twice'),
    # Before they are the study's, so that they can be mended.
    ({'gin_param': ['train.epoch = 3']}, 'train.epoch'),
    ({'gin_param': ['ball:train.epochs = 3']}, 'ball:train.epochs'),
    ({'gin_param': ['train.epochs = 0']}, 'train.epochs is 0, wanted'),
    (
      {'gin_param': ['boxes:train.seed = 3']},
      'the study decides train.seed of boxes itself',
    ),
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
  parameters = {'boxes': ['train.epochs = 9']}
  settings = {
    'gin_param': parameters,
    'learning_rates': {},
    'data': {},
    'init': {},
  }
  (folder / 'study.json').write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match='holds a study with --gin_param'):
    study()
  settings |= {'gin_param': {}, 'data': {'boxes': '/elsewhere'}}
  (folder / 'study.json').write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match='--data boxes /elsewhere, now it'):
    study()
  settings |= {'data': {}, 'learning_rates': {'boxes': [1e-3]}}
  (folder / 'study.json').write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match='study with --learning_rates box'):
    study()
  # Of another version of this program.
  (folder / 'study.json').write_text(json.dumps(settings | {'gin_param': []}))
  with pytest.raises(errors.UserError, match='cannot be used'):
    study()
  assert os.listdir(folder) == ['study.json']


def test_data_or_starts_that_changed_are_told(
  study, data_dir, tmp_path, monkeypatch
):
  module = sys.modules['tools.transfer_study']
  monkeypatch.setattr(module, '_run_all', lambda *_: (_ for _ in ()))
  monkeypatch.setattr(module, 'report', lambda *_: None)
  data, start = tmp_path / 'data', tmp_path / 'start.keras'
  shutil.copytree(data_dir, data)
  start.write_bytes(b'first')
  given = {'data': [f'boxes={data}'], 'init': [f'start={start}']}
  study(**given)
  study(**given)
  start.write_bytes(b'second')
  with pytest.raises(errors.UserError, match='results of init start as it was'):
    study(**given)
  study(data=given['data'])
  shard = next(data.glob('*.tfrecord*'))
  shard.write_bytes(shard.read_bytes())
  with pytest.raises(errors.UserError, match='results of data boxes as it was'):
    study(data=given['data'])


def test_runs_whose_folders_are_gone_have_no_curves(
  study, tmp_path, monkeypatch, capsys
):
  module = sys.modules['tools.transfer_study']
  plan = module.runs_lib.Plan({}, {}, (), str(tmp_path))
  row = {'task': 'boxes', 'init': 'scratch', 'fraction': 1.0, 'seed': 1}
  of_task = pd.DataFrame([row | {'learning_rate': 1e-3}])
  assert module._read_histories(plan, of_task, 'validation/iou') == {}
  assert 'without 1 runs, whose folders are gone' in capsys.readouterr().out


def test_a_task_is_added_with_parameters_of_its_own(
  study, data_dir, tmp_path, monkeypatch
):
  module = sys.modules['tools.transfer_study']
  monkeypatch.setattr(module, '_run_all', lambda *_: (_ for _ in ()))
  monkeypatch.setattr(module, 'report', lambda *_: None)
  study()
  own = 'more:train.epochs = 3'
  study(
    data=[f'boxes={data_dir}', f'more={data_dir}'], gin_param=[*_SMALL, own]
  )
  with pytest.raises(errors.UserError, match='--gin_param more '):
    study(data=[f'more={data_dir}'], gin_param=_SMALL[:3])
  settings = json.loads((tmp_path / 'study' / 'study.json').read_text())
  assert settings['gin_param']['more'][-1] == 'train.epochs = 3'
  assert settings['gin_param']['boxes'][-1] == 'train.epochs = 2'


def test_one_command_at_a_time_works_on_a_study(study, tmp_path):
  with (
    output_lock.hold(str(tmp_path / 'study')),
    pytest.raises(errors.UserError, match=r'another run is writing to .*study'),
  ):
    study()
  assert not os.listdir(tmp_path / 'study')


def test_a_learning_rate_given_twice_is_tried_once(
  study, tmp_path, monkeypatch
):
  module = sys.modules['tools.transfer_study']
  monkeypatch.setattr(module, '_run_all', lambda *_: (_ for _ in ()))
  monkeypatch.setattr(module, 'report', lambda *_: None)
  study(learning_rates=['boxes=1e-3,0.001,1e-2'])
  settings = json.loads((tmp_path / 'study' / 'study.json').read_text())
  assert settings['learning_rates'] == {'boxes': [1e-3, 1e-2]}


def test_an_error_ends_the_other_trainings_too(study, monkeypatch):
  module = sys.modules['tools.transfer_study']
  monkeypatch.setattr(module.runs_lib, 'run_in_process', _fail)
  monkeypatch.setattr(module.runs_lib, 'begin_process', _begin)
  with pytest.raises(errors.UserError, match='wrong data'):
    study(seeds=2, processes=2)
  for process in multiprocessing.active_children():
    process.join(10)
  assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_told(study, monkeypatch):
  module = sys.modules['tools.transfer_study']
  monkeypatch.setattr(module.runs_lib, 'run_in_process', _be_killed)
  monkeypatch.setattr(module.runs_lib, 'begin_process', _begin)
  with pytest.raises(errors.UserError, match='was killed, maybe for want of'):
    study()


@pytest.mark.long
def test_a_run_that_fails_is_named(study, tmp_path):
  (tmp_path / 'empty').mkdir()
  text = r'boxes, both, 50 % of the labels, seed 1: .*no model\.json in workdir'
  with pytest.raises(errors.UserError, match=text):
    study(init=[f'both={tmp_path / "empty"}'])


@pytest.mark.long
def test_processes_that_had_their_share_are_replaced(study, tmp_path):
  study(seeds=3, runs_of_a_process=1)
  rows = tables.read_rows(str(tmp_path / 'study' / 'rows.csv'))
  assert list(rows['seed']) == [1, 2, 3]


def test_the_script_takes_no_folder_of_other_settings(tmp_path):
  def run(*arguments, **variables):
    return subprocess.run(
      ['bash', 'tools/transfer_study.sh', *arguments],
      cwd=_ROOT,
      # No flag of make_phantom: that ends it once the settings are checked.
      env=os.environ | {'PATIENT_FLAGS': '--none'} | variables,
      capture_output=True,
      text=True,
      check=False,
    )

  assert 'wanted: bash tools/transfer_study.sh OUT [SCAN]' in run().stderr
  assert "Unknown command line flag 'none'" in run(str(tmp_path)).stderr
  assert "Unknown command line flag 'none'" in run(str(tmp_path)).stderr
  for other in (
    run(str(tmp_path), str(tmp_path)),
    run(str(tmp_path), WORDS='5'),
  ):
    assert other.returncode == 1
    assert f'error: {tmp_path} holds patients and netw' in other.stderr
    assert 'Unknown' not in other.stderr
  # More labels or seeds are added.
  assert 'Unknown' in run(str(tmp_path), SEEDS='7', FRACTIONS='1').stderr
  assert os.listdir(tmp_path) == ['settings']


@pytest.mark.long
def test_the_script_goes_from_scans_to_plots(tmp_path):
  small = {
    'PATIENTS': '24',
    'PATIENT_FLAGS': '--size 160,160,112 --nodules 1,2',
    'TARGET_PATIENTS': '20',
    'TARGET_FLAGS': '--size 160,160,112',
    'WORDS': '3',
    'WORDS_EPOCHS': '1',
    'RESTORATION_EPOCHS': '1',
    'BOTH_EPOCHS': '1',
    'CANDIDATE_EPOCHS': '1',
    'NODULE_EPOCHS': '1',
    'SEEDS': '1',
    'FRACTIONS': '1',
    'FILTERS': '2',
  }
  done = subprocess.run(
    ['bash', 'tools/transfer_study.sh', str(tmp_path)],
    cwd=_ROOT,
    env=os.environ | small,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  rows = tables.measured(tables.read_rows(str(tmp_path / 'study' / 'rows.csv')))
  assert set(rows['task']) == {'candidates', 'nodules'}
  assert set(rows['init']) == {'scratch', 'words', 'restoration', 'both'}
  assert len(rows) == 8
  assert (tmp_path / 'study' / 'fractions.png').exists()
  config = (tmp_path / 'both' / 'operative_config.gin').read_text()
  # Long values stand on a line of their own.
  assert f"train.start_from = '{tmp_path}/restoration'" in config.replace(
    '\\\n    ', ''
  )
  assert 'train.schedule = @CosineDecay' in config
  assert 'elastic_probability = 0' in config
  lines = (tmp_path / 'patients' / 'annotations.csv').read_text().splitlines()
  assert len(lines) - 1 <= 2 * 24
