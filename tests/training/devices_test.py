"""`--devices` and batch sizes; strategies run in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

from transvw_tf2 import errors
from transvw_tf2.training import devices

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('all', ('all', ())),
    ('cpu', ('cpu', (1,))),
    ('cpu:2', ('cpu', (2,))),
    ('gpu', ('gpu', ())),
    (' GPU:0,3 ', ('gpu', (0, 3))),
  ],
)
def test_parse(text, want):
  assert devices.parse_devices(text) == want


@pytest.mark.parametrize(
  'text', ['', 'tpu', 'cpu:0', 'cpu:1,2', 'gpu:', 'gpu:1,1', 'gpu:a', '2']
)
def test_parse_refuses(text):
  with pytest.raises(errors.UserError, match='--devices is'):
    devices.parse_devices(text)


def test_batch_must_divide():
  devices.check_batch_size(8, 4)
  for batch in (0, 6):
    with pytest.raises(errors.UserError, match='multiple of the 4 replicas'):
      devices.check_batch_size(batch, 4)


_MAKE = """
import sys
from transvw_tf2 import mains
from transvw_tf2.training import devices

def main(argv):
  strategy = devices.make_strategy(argv[1])
  print(
    strategy.num_replicas_in_sync,
    devices.is_chief(strategy),
    devices.uses_gpu(strategy),
    devices.describe(strategy),
  )

mains.run(main, positional=True)
"""


def _make(text, **environment):
  return subprocess.run(
    [sys.executable, '-c', _MAKE, text],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    env={**os.environ, **environment},
    check=False,
  )


def test_logical_cpus_are_replicas():
  done = _make('cpu:2')
  assert done.stdout == '2 True False CPU:0, CPU:1\n', done.stderr


def test_a_gpu_that_does_not_exist_is_one_line():
  done = _make('gpu:97')
  assert done.returncode == 1
  assert "'gpu:97' but TensorFlow sees" in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr


def test_cluster_and_logical_cpus_exclude_each_other():
  config = json.dumps({'cluster': {'worker': ['localhost:1']}})
  done = _make('cpu:2', TF_CONFIG=config)
  assert done.returncode == 1
  assert 'start more workers instead' in done.stderr.splitlines()[-1]


def test_broken_cluster_is_one_line(monkeypatch):
  monkeypatch.setenv('TF_CONFIG', '{')
  with pytest.raises(errors.UserError, match='TF_CONFIG is'):
    devices.make_strategy('all')
