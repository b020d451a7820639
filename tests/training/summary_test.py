"""summary.json, against a history made by hand and repositories made here."""

import json
import math
import os
import shutil
import subprocess

import keras
import pytest
import tensorflow as tf

import transvw_tf2
from transvw_tf2.training import summary

_needs_git = pytest.mark.skipif(not shutil.which('git'), reason='no git')

_ROWS = [
  {
    'epoch': epoch,
    'train/loss': 9.0,
    'validation/loss': loss,
    'validation/accuracy': accuracy,
    'cubes_per_second': speed,
  }
  for epoch, loss, accuracy, speed in (
    (1, 0.5, 0.1, 1.0),
    (2, 0.25, 0.4, 100.0),
    (3, 0.25, 0.3, 8.0),
    (4, math.nan, math.inf, 9.0),
  )
]


def _write(workdir, strategy, rows=_ROWS, **settings):
  with strategy.scope():
    # 3 x 4 weights and 4 biases; 4 x 4 numbers of batch norm, half of which
    # are moving statistics.
    model = keras.Sequential(
      [keras.Input((3,)), keras.layers.Dense(4)]
      + [keras.layers.BatchNormalization()]
    )
  summary.write_summary(
    str(workdir),
    rows,
    **(
      {
        'seconds': 12.5,
        'ended': 'last epoch',
        'strategy': strategy,
        'model': model,
        'config': "a.b = 'c'\n",
      }
      | settings
    ),
  )

  def refuse(token):
    raise AssertionError(f'{token} is not JSON')

  with open(workdir / 'summary.json', encoding='utf-8') as file:
    return json.load(file, parse_constant=refuse)


def test_summary_of_a_history(tmp_path, strategy):
  written = _write(tmp_path, strategy)
  assert os.listdir(tmp_path) == ['summary.json']  # no temporary file
  assert written['ended'] == 'last epoch'
  assert written['epochs'] == 4
  assert written['best_epoch'] == 2  # the first of the two
  assert written['best_validation'] == {'loss': 0.25, 'accuracy': 0.4}
  # Neither NaN nor Infinity is JSON.
  assert written['last_validation'] == {'loss': None, 'accuracy': None}
  assert written['cubes_per_second'] == 8.5  # of 1, 8, 9, 100
  assert written['seconds'] == 12.5
  assert written['parameters'] == 16 + 16
  assert written['trainable_parameters'] == 16 + 8
  assert written['replicas'] == 1
  assert len(written['devices']) == 1
  assert written['config'] == "a.b = 'c'\n"
  versions = written['versions']
  assert versions['tensorflow'] == tf.__version__
  assert versions['keras'] == keras.__version__
  assert {'python', 'numpy', 'transvw-tf2', 'tensorflow-datasets'} < set(
    versions
  )


def test_the_best_epoch_is_that_of_the_best_metric(tmp_path, strategy):
  rows = [
    {'epoch': epoch, 'validation/loss': loss, 'validation/auc': auc}
    for epoch, loss, auc in (
      (1, 0.1, math.nan),
      (2, 0.2, 0.7),
      (3, 0.3, 0.9),
      (4, 0.4, 0.9),
    )
  ]
  written = _write(
    tmp_path, strategy, rows=rows, best_metric='auc', rising=True
  )
  assert (written['best_metric'], written['best_epoch']) == ('auc', 3)
  assert written['best_validation'] == {'loss': 0.3, 'auc': 0.9}


def test_a_run_without_an_epoch(tmp_path, strategy):
  written = _write(tmp_path, strategy, rows=[], ended='interrupted')
  assert written['epochs'] == 0
  assert written['best_epoch'] is None
  assert written['best_validation'] == {}
  assert written['ended'] == 'interrupted'


def test_rows_of_an_earlier_version_lack_columns(tmp_path, strategy):
  rows = [{'epoch': 1, 'train/loss': 1.0}, _ROWS[1] | {'epoch': 2}]
  written = _write(tmp_path, strategy, rows=rows)
  assert written['best_epoch'] == 2
  assert written['cubes_per_second'] == 100


def test_epochs_of_unknown_speed_do_not_count(tmp_path, strategy):
  rows = [_ROWS[1], _ROWS[1] | {'cubes_per_second': float('nan')}]
  assert _write(tmp_path, strategy, rows=rows)['cubes_per_second'] == 100
  assert 'cubes_per_second' not in _write(tmp_path, strategy, rows=rows[1:])


def test_what_cannot_be_written_leaves_the_old_one(
  tmp_path, strategy, monkeypatch
):
  before = _write(tmp_path, strategy)

  def fail(*args, **kwargs):
    raise OSError('No space left on device')

  monkeypatch.setattr(summary.json, 'dump', fail)
  with pytest.raises(OSError, match='No space'):
    _write(tmp_path, strategy, seconds=99.0)
  with open(tmp_path / 'summary.json', encoding='utf-8') as file:
    assert json.load(file) == before


def test_source_is_that_of_the_call(tmp_path, strategy):
  source = {'commit': 'abc', 'local_changes': False}
  assert _write(tmp_path, strategy, source=source)['source'] == source


def _git(folder, *arguments):
  return subprocess.run(
    ['git', '-c', 'user.name=A', '-c', 'user.email=a@b.c', *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()


def _make_repository(root, package):
  package.mkdir(parents=True)
  (package / '__init__.py').write_text('')
  _git(root, 'init', '-q')
  _git(root, 'add', '-A')
  _git(root, 'commit', '-q', '-m', 'one')
  return _git(root, 'rev-parse', 'HEAD')


@_needs_git
def test_source_in_a_checkout(tmp_path, monkeypatch):
  package = tmp_path / 'package'
  commit = _make_repository(tmp_path, package)
  # As within a hook of another repository.
  monkeypatch.setenv('GIT_DIR', str(tmp_path / 'elsewhere'))
  clean = {'commit': commit, 'local_changes': False}
  assert summary.describe_source(str(package)) == clean
  (tmp_path / 'notes').write_text('not of the package')
  assert summary.describe_source(str(package)) == clean
  (package / '__init__.py').write_text('changed = True')
  assert summary.describe_source(str(package)) == {
    'commit': commit,
    'local_changes': True,
  }


@_needs_git
@pytest.mark.parametrize(
  'place', ['.venv/lib/site-packages/package', 'third_party/package']
)
def test_source_inside_another_repository_is_unknown(tmp_path, place):
  package = tmp_path / place
  _make_repository(tmp_path, package)
  unknown = {'commit': None, 'local_changes': None}
  assert summary.describe_source(str(package)) == unknown


@_needs_git
def test_installed_at_the_top_of_another_repository(tmp_path):
  """Such as `pip install --target .`, not among its files."""
  _make_repository(tmp_path, tmp_path / 'other')
  (tmp_path / 'package').mkdir()
  (tmp_path / 'package' / '__init__.py').write_text('')
  assert summary.describe_source(str(tmp_path / 'package'))['commit'] is None


@_needs_git
def test_source_without_git(tmp_path, monkeypatch):
  package = tmp_path / 'package'
  _make_repository(tmp_path, package)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert summary.describe_source(str(package))['commit'] is None


@_needs_git
def test_source_of_this_package():
  source = summary.describe_source()
  root = os.path.dirname(os.path.dirname(transvw_tf2.__file__))
  if os.path.exists(os.path.join(root, '.git')):
    assert source['commit'] == _git(root, 'rev-parse', 'HEAD')
  else:
    assert source['commit'] is None
