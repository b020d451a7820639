"""Runs as processes: several workers, killed, asked to stop, no room left."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import reports

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_EPOCHS = 4
_STEPS = tiny_data.TRAIN_CUBES // 2  # in an epoch
_GIN = (
  *tiny_data.GIN,
  'train.batch_size = 2',
  'train.checkpoint_steps = 2',
  'train.jit_compile = False',
  f'train.epochs = {_EPOCHS}',
  'train.picture_epochs = 1000',
  # Painted areas are flat: whether a voxel in them is the largest of its
  # neighbours, or above zero, is a matter of rounding, and so are gradients.
  'tasks.perturb.inpaint_probability = 0.0',
  'tasks.perturb.outpaint_probability = 0.0',
  'train.learning_rate = 3e-4',
)
# 108 steps, 60 checkpoints.
_LONGER = ('train.epochs = 12',)
_DETERMINISTIC = ('--deterministic', '--threads=1')
# Of a process that starts, or of all of a run, on a busy machine.
_PATIENCE = 300.0


class _Process:
  """`python -m transvw_tf2.train` that is killed when it is left."""

  def __init__(
    self, workdir, data_dir, *arguments, gin=(), environment=None, limit=None
  ):
    """Starts it.

    Args:
      workdir: pathlib.Path of the run.
      data_dir: of the data set.
      *arguments: flags.
      gin: bindings after those of all runs here.
      environment: variables.
      limit: bytes that a file may have at most.
    """
    self.log = workdir.with_name(f'{workdir.name}.{time.monotonic_ns()}.log')

    def limit_files():
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with open(self.log, 'wb') as log:
      self.process = subprocess.Popen(
        [
          *(sys.executable, '-m', 'transvw_tf2.train'),
          '--gin_file=gin/runs/quickstart.gin',
          *(f'--gin_param={binding}' for binding in (*_GIN, *gin)),
          '--devices=cpu',
          f'--data={data_dir}',
          f'--workdir={workdir}',
          *arguments,
        ],
        stdout=log,
        stderr=log,
        cwd=_ROOT,
        env=os.environ | {'PYTHONUNBUFFERED': '1'} | (environment or {}),
        preexec_fn=limit_files if limit else None,
      )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.process.kill()
    self.process.wait()

  @property
  def text(self) -> str:
    return self.log.read_text()

  def wait_until(self, condition) -> bool:
    """Returns whether the condition held before the process ended."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
      if condition():
        return True
      if self.process.poll() is not None:
        return False
      time.sleep(0.02)
    raise AssertionError(f'nothing happened: {self.text}')

  def finish(self, code: int = 0) -> str:
    """Waits for the end; returns what it printed."""
    assert self.process.wait(_PATIENCE) == code, self.text
    assert code or 'Traceback' not in self.text
    return self.text


def _run(workdir, data_dir, *arguments, code=0, **settings) -> str:
  with _Process(workdir, data_dir, *arguments, **settings) as process:
    return process.finish(code)


def _checkpoint_numbers(folder):
  """Returns the steps at which the checkpoints of a folder were saved."""
  state = tf.train.get_checkpoint_state(str(folder))
  paths = state.all_model_checkpoint_paths if state else ()
  return [int(path.rpartition('-')[2]) for path in paths]


def _latest(workdir):
  return workdir / 'checkpoints' / 'latest'


def _last_number(workdir) -> int:
  return max(_checkpoint_numbers(_latest(workdir)), default=0)


def _tensors(folder, number=None) -> dict:
  """Returns all of a checkpoint that does not depend on time."""
  number = _checkpoint_numbers(folder)[-1] if number is None else number
  reader = tf.train.load_checkpoint(str(folder / f'ckpt-{number}'))
  tensors = {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    # How the rest hangs together; how often this process saved.
    if not name.startswith(('_CHECKPOINTABLE', 'save_counter'))
  }
  progress = json.loads(tensors.pop('progress/.ATTRIBUTES/py_state'))
  del progress['seconds']
  return tensors | progress


def _assert_same(first: dict, second: dict):
  assert set(first) == set(second)
  assert len(first) > 60
  for name, value in first.items():
    np.testing.assert_array_equal(value, second[name], err_msg=name)


def _history(workdir) -> list[dict[str, float]]:
  rows = reports.read_history(str(workdir))
  for row in rows:
    del row['cubes_per_second']
  return rows


def _assert_same_run(workdir, other):
  """All epochs, and at the end the same bits."""
  assert _history(workdir) == _history(other)
  for which in (checkpoints.LATEST, checkpoints.BEST):
    folders = [one / 'checkpoints' / which for one in (workdir, other)]
    _assert_same(*(_tensors(folder) for folder in folders))


@pytest.fixture(name='undisturbed', scope='module')
def _undisturbed(tmp_path_factory, data_dir):
  """The workdir of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  _run(workdir, data_dir, *_DETERMINISTIC)
  return workdir


@contextlib.contextmanager
def _workers(workdir, data_dir, **settings):
  """Starts two workers of one cluster; the first is the chief."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    addresses = [f'127.0.0.1:{one.getsockname()[1]}' for one in sockets]
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(
        _Process(
          workdir,
          data_dir,
          environment={
            'TF_CONFIG': json.dumps(
              {
                'cluster': {'worker': addresses},
                'task': {'type': 'worker', 'index': index},
              }
            )
          },
          **settings,
        )
      )
      for index in range(2)
    ]


@pytest.mark.long
def test_two_workers_equal_one(undisturbed, data_dir, tmp_path):
  """The same global batch, with statistics of batch norm over both."""
  workdir = tmp_path / 'run'
  with _workers(workdir, data_dir, gin=['train.epochs = 2']) as workers:
    outputs = [worker.finish() for worker in workers]
  assert ['2 epochs in' in output for output in outputs] == [True, False]
  one, two = _history(undisturbed)[:2], _history(workdir)
  for want, row in zip(one, two, strict=True):
    for name, value in want.items():
      # Sums in another order; 6e-6 was seen.
      assert row[name] == pytest.approx(value, rel=5e-5), name
  # Not because nothing was learned.
  assert two[1]['train/loss'] < 0.95 * two[0]['train/loss']
  # One history and one file of events, of the chief, and nothing left over.
  assert sorted(os.listdir(workdir)) == sorted(os.listdir(undisturbed))
  assert len(os.listdir(workdir / 'tensorboard')) == 1
  with open(workdir / 'summary.json', encoding='utf-8') as file:
    assert json.load(file)['replicas'] == 2


@pytest.mark.long
def test_compiled_workers_stay_together(data_dir, tmp_path):
  """Each with its own statistics; killed and resumed on the way."""
  workdir = tmp_path / 'run'
  settings = {
    'gin': ('train.jit_compile = True', 'train.keep_checkpoints = 1000')
  }
  folders = [
    _latest(workdir),
    _latest(workdir / '.workers' / 'worker-1'),
  ]

  def shared_checkpoints():
    numbers = (set(_checkpoint_numbers(folder)) for folder in folders)
    return sorted(set.intersection(*numbers))

  with _workers(workdir, data_dir, **settings) as workers:
    assert workers[0].wait_until(lambda: len(shared_checkpoints()) >= 12)
  numbers = shared_checkpoints()
  for number in (numbers[0], numbers[5], numbers[-1]):
    _assert_same(*(_tensors(folder, number) for folder in folders))
  with _workers(workdir, data_dir, **settings) as workers:
    for worker in workers:
      assert 'resuming after epoch' in worker.finish()
  assert not (workdir / '.workers').exists()
  rows = _history(workdir)
  assert [row['epoch'] for row in rows] == list(range(1, _EPOCHS + 1))
  assert np.isfinite([list(row.values()) for row in rows]).all()
  assert rows[-1]['train/loss'] < rows[0]['train/loss']
  assert rows[-1]['validation/loss'] < rows[0]['validation/loss']


@pytest.fixture(name='longer', scope='module')
def _longer(tmp_path_factory, data_dir):
  """A longer run, and the seconds from its first checkpoint to its end."""
  workdir = tmp_path_factory.mktemp('longer') / 'run'
  with _Process(workdir, data_dir, *_DETERMINISTIC, gin=_LONGER) as process:
    assert process.wait_until(lambda: _last_number(workdir) > 0)
    start = time.monotonic()
    process.finish()
    return workdir, time.monotonic() - start


@pytest.mark.long
@pytest.mark.parametrize('kills', [2, 10])
def test_a_killed_run_ends_with_the_same_bits(
  longer, data_dir, tmp_path, kills
):
  """SIGKILL at any moment, then the same command, over and over."""
  workdir = tmp_path / 'run'
  want, seconds = longer
  # Each goes on from one checkpoint at least; not to the end before the last.
  fractions = np.random.default_rng(kills).uniform(0, 0.9 / kills, kills)
  killed = []
  for fraction in fractions:
    before = _last_number(workdir)
    with _Process(workdir, data_dir, *_DETERMINISTIC, gin=_LONGER) as process:
      process.wait_until(lambda before=before: _last_number(workdir) > before)
      time.sleep(fraction * seconds)
      process.process.kill()
      if process.process.wait() == -signal.SIGKILL:
        killed.append(_last_number(workdir))
  # On a busy machine it may be faster at last than it was at first.
  assert len(killed) >= 0.8 * kills
  assert sorted(set(killed)) == killed  # further each time
  _run(workdir, data_dir, *_DETERMINISTIC, gin=_LONGER)
  _assert_same_run(workdir, want)


@pytest.mark.long
def test_sigterm_saves_and_the_run_goes_on(undisturbed, data_dir, tmp_path):
  workdir = tmp_path / 'run'
  with _Process(workdir, data_dir, *_DETERMINISTIC) as process:
    assert process.wait_until(lambda: _last_number(workdir) > _STEPS + 2)
    process.process.terminate()
    text = process.finish(code=75)
  found = re.search(r'stopped in epoch (\d+) after step (\d+) and saved', text)
  assert found, text
  # Saved there, not only at the last regular checkpoint.
  epoch, step = map(int, found.groups())
  assert (
    _checkpoint_numbers(_latest(workdir))[-1] == (epoch - 1) * _STEPS + step
  )
  with open(workdir / 'summary.json', encoding='utf-8') as file:
    assert json.load(file)['ended'] == 'interrupted'

  text = _run(workdir, data_dir, *_DETERMINISTIC)
  assert f'resuming after epoch {epoch - 1}, step {step}' in text
  _assert_same_run(workdir, undisturbed)


@pytest.mark.long
def test_no_room_keeps_the_last_checkpoint(undisturbed, data_dir, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  before = _tensors(_latest(workdir))
  text = _run(
    workdir,
    data_dir,
    *_DETERMINISTIC,
    gin=[f'train.epochs = {_EPOCHS + 1}'],
    limit=100_000,  # of the 239 KB of a checkpoint
    code=1,
  )
  lines = text.splitlines()
  assert lines[-1].startswith('error: '), text
  assert 'cannot be written' in lines[-1]
  assert 'Traceback' not in text
  _assert_same(before, _tensors(_latest(workdir)))
  _, description = checkpoints.load_model(str(workdir), checkpoints.LATEST)
  assert description['epoch'] == _EPOCHS
  # Nothing half-written.
  assert sorted(os.listdir(_latest(workdir))) == sorted(
    os.listdir(_latest(undisturbed))
  )
