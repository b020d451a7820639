"""`python -m transvw_tf2.train` from the outside."""

import os
import subprocess
import sys

from absl.testing import flagsaver
import pytest

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.training import gin_files
from transvw_tf2.training import reports

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(name='data_dir', scope='module')
def _data_dir(tmp_path_factory):
  return tiny_data.write(tmp_path_factory.mktemp('tiny_data'))


def _train(workdir, data_dir, *arguments, stdout=subprocess.PIPE):
  return subprocess.run(
    [
      *(sys.executable, '-m', 'transvw_tf2.train'),
      '--gin_file=gin/runs/quickstart.gin',
      *(f'--gin_param={binding}' for binding in tiny_data.GIN),
      *('--gin_param=train.batch_size = 4', '--gin_param=train.epochs = 2'),
      f'--data={data_dir}',
      f'--workdir={workdir}',
      *arguments,
    ],
    stdout=stdout,
    stderr=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
    check=False,
  )


@pytest.mark.long
def test_two_replicas_equal_one(data_dir, tmp_path):
  """The same global batch on one and on two logical CPUs."""
  rows = []
  for devices in ('cpu:1', 'cpu:2'):
    done = _train(tmp_path / devices, data_dir, f'--devices={devices}')
    assert done.returncode == 0, done.stderr
    assert '2 epochs in' in done.stdout
    rows.append(reports.read_history(str(tmp_path / devices)))
  for one, two in zip(*rows, strict=True):
    for name in set(one) - {'cubes_per_second', 'train/accuracy'}:
      assert two[name] == pytest.approx(one[name], rel=2e-3), name
  config = (tmp_path / 'cpu:1' / 'operative_config.gin').read_text()
  assert 'train.batch_size = 4' in config
  assert 'visual_word_net.base_filters = 2' in config


@pytest.mark.long
def test_compiled_replicas_learn(data_dir, tmp_path):
  done = _train(
    tmp_path,
    data_dir,
    '--devices=cpu:2',
    '--gin_param=train.jit_compile = True',
  )
  assert done.returncode == 0, done.stderr
  first, last = reports.read_history(str(tmp_path))
  assert last['train/loss'] < first['train/loss']


@pytest.mark.parametrize(
  ('argument', 'line', 'said'),
  [
    ('--gin_param=train.no_such = 1', 'no_such', ''),
    (
      '--gin_param=train.batch_size = 3',
      'multiple of the 2 replicas',
      'training on CPU:0, CPU:1\n',
    ),
    (
      '--data=/no/such/folder',
      'does not exist',
      'training on CPU:0, CPU:1\n',
    ),
    ('--gin_file=gin/runs/no.gin', 'gin/runs/no.gin does not exist', ''),
    (
      '--gin_param=visual_word_net.depth = 1',
      'model: depth is 1, wanted at least 2: change depth',
      'training on CPU:0, CPU:1\n',
    ),
  ],
)
def test_bad_input_is_one_clear_line(data_dir, tmp_path, argument, line, said):
  workdir = tmp_path / 'run'
  done = _train(workdir, data_dir, '--devices=cpu:2', argument)
  assert (done.returncode, done.stdout) == (1, said)
  assert done.stderr.splitlines()[-1].startswith('error: ')
  assert line in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
  assert 'object at 0x' not in done.stderr
  assert 'function' not in done.stderr
  assert not workdir.exists()


@pytest.mark.long
def test_a_closed_pipe_does_not_fail_a_run(data_dir, tmp_path):
  read, write = os.pipe()
  os.close(read)
  with open(write, 'wb') as closed:
    done = _train(
      tmp_path / 'run', data_dir, '--gin_param=train.epochs = 1', stdout=closed
    )
  assert done.returncode == 0, done.stderr
  assert 'Traceback' not in done.stderr


def test_threads_are_for_deterministic_runs(import_main, tmp_path):
  main = import_main('transvw_tf2.train')
  with (
    flagsaver.flagsaver((main._WORKDIR, str(tmp_path / 'run'))),
    flagsaver.as_parsed(
      (main._THREADS, '2'), (main._GIN_FILE, 'gin/runs/quickstart.gin')
    ),
    pytest.raises(errors.UserError, match='--threads is for runs with --det'),
  ):
    try:
      main.main([])
    finally:
      gin_files.forget()
  assert not os.listdir(tmp_path)


def test_missing_workdir_is_one_clear_line():
  done = subprocess.run(
    [sys.executable, '-m', 'transvw_tf2.train', '--gin_file=x.gin'],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )
  assert done.returncode != 0
  assert '--workdir' in done.stderr
  assert 'Traceback' not in done.stderr
