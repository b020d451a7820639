"""The benchmark `perturb`, at sizes that say nothing but that it runs."""

import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pytest

from tools.benchmarks import perturb_sides
from transvw_tf2 import errors

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SIDES = [
  'published',
  'ours',
  'ours_batch_1',
  'ours_batch_16',
  'ours_in_tf_data',
  'ours_uncompiled',
  'ours_uncompiled_in_tf_data',
  'published_pytorch',
  'ours_pytorch',
  'elastic_scipy',
  'elastic_batchgenerators',
  'elastic_torchio',
  'elastic_monai',
  'elastic',
]
_PEERS = ('batchgenerators', 'torchio', 'monai')


@pytest.fixture
def benchmark(import_main):
  return import_main('tools.benchmark')


@pytest.fixture
def perturb(benchmark):
  """The file of the benchmark, and its flags at a tiny size."""
  module = benchmark.load('perturb')
  with flagsaver.flagsaver(repeats=3, seconds=0.01):
    yield module


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
  """Has imports of the script find what lies beside it."""
  monkeypatch.syspath_prepend(os.path.join(_ROOT, 'tools', 'benchmarks'))


class _Answers:
  """Stands in for a process: a side's speed goes up, and once far up."""

  def __init__(self, name):
    self.calls = []

  def run(self, side, seconds):
    self.calls.append(side)
    number = self.calls.count(side)
    assert seconds == (0.001 if number == 1 else 0.01)
    speed = [None, 1e9, 2.0, 4.0, 3000.0][number]
    return speed * (1 + _SIDES.index(side))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


def test_lines_are_medians_and_their_ratios(benchmark, perturb, monkeypatch):
  monkeypatch.setattr(perturb, '_Process', _Answers)
  monkeypatch.setattr(perturb, '_find_peers', lambda: list(_PEERS))
  rows = [line.split(', ') for line in benchmark.lines('perturb')]
  assert [row[0] for row in rows] == [f'perturb_{side}' for side in _SIDES]
  for number, row in enumerate(rows):
    assert row[2] == 'cubes/s' and float(row[1]) == 4 * (1 + number)
  baselines = {
    'perturb_published': rows[1:7],
    'perturb_published_pytorch': [rows[8]],
    # The fastest of the others here.
    'perturb_elastic_monai': [*rows[9:12], rows[13]],
  }
  assert [rows[number][3] for number in (0, 7, 12)] == ['-'] * 3
  speeds = {row[0]: float(row[1]) for row in rows}
  for baseline, compared in baselines.items():
    for row in compared:
      assert row[4] == baseline
      want = float(row[1]) / speeds[baseline]
      assert float(row[3]) == pytest.approx(want, rel=1e-2)


def test_peers_that_are_missing_are_left_out(
  benchmark, perturb, monkeypatch, capsys
):
  monkeypatch.setattr(perturb, '_Process', _Answers)
  monkeypatch.setattr(perturb.importlib.util, 'find_spec', lambda name: None)
  names = [line.split(', ')[0] for line in benchmark.lines('perturb')]
  assert names == [f'perturb_{side}' for side in _SIDES[:10] + _SIDES[-1:]]
  told = capsys.readouterr().err.splitlines()
  assert told == [
    f'no {name}: perturb_elastic_{name} is left out; pip install {name}'
    for name in _PEERS
  ]


def test_a_process_is_bound_to_one_core(perturb):
  with perturb._Process('scipy') as process:
    assert process.run('elastic_scipy', 0.01) > 0
    cores = os.sched_getaffinity(process._process.pid)
  assert cores == {max(os.sched_getaffinity(0))}


def test_a_process_that_fails_is_told(perturb):
  with (
    perturb._Process('nonesuch') as process,
    pytest.raises(errors.UserError, match="of nonesuch failed: KeyError: 'no"),
  ):
    process.run('elastic', 0.01)
  with (
    flagsaver.flagsaver(core=10**6),
    pytest.raises(errors.UserError, match='--core is 1000000, wanted one of'),
  ):
    perturb._Process('scipy')


def test_our_sides_perturb_anew_each_time():
  cubes = perturb_sides.make_cubes()[:3, :20, :20, :20]
  ours = perturb_sides.Ours(cubes, 2)
  for side in ('ours_uncompiled', 'ours_uncompiled_in_tf_data'):
    assert ours.measure(side, 0.01) > 0
    first, second = (next(ours._batches[side]).numpy() for _ in range(2))
    assert first.shape == (2, 20, 20, 20, 1)
    assert np.abs(first - cubes[:2, ..., np.newaxis]).mean() > 0.01
    assert np.abs(first - second).mean() > 0.01


def test_the_cubes_are_in_the_range_of_the_network():
  cubes = perturb_sides.make_cubes()
  assert cubes.shape == (32, 64, 64, 32) and cubes.dtype == np.float32
  assert cubes.min() >= 0 and cubes.max() <= 1
  # Both lung and soft tissue in each.
  for cube in cubes:
    assert 0.1 < np.mean(cube > 0.3) < 0.9


@pytest.mark.long
@pytest.mark.parametrize('name', ['scipy', *_PEERS])
def test_elastic_fields_have_the_same_size(name):
  if name != 'scipy':
    pytest.importorskip(name)
  deform = perturb_sides.MAKERS[name]()[f'elastic_{name}']
  # Of a ramp the value tells where a voxel comes from.
  x, y, _ = np.indices((64, 64, 32), np.float32)
  moves = []
  for _ in range(40):
    for ramp in (x, y):
      got = np.reshape(np.asarray(deform(ramp)), ramp.shape)
      moves.append(got[32, 32, 16] - ramp[32, 32, 16])
  # 80 numbers give a standard deviation within 8 % (one sigma).
  assert np.std(moves) == pytest.approx(3.78, rel=0.32)
  assert abs(np.mean(moves)) < 4 * 3.78 / 80**0.5


@pytest.mark.long
def test_the_command():
  done = subprocess.run(
    [
      *(sys.executable, 'tools/benchmark.py', 'perturb'),
      *('--repeats=1', '--seconds=0.2', '--batch=2'),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split(', ') for line in done.stdout.splitlines()]
  missing = [
    side for side in _SIDES if f'perturb_{side} is left out' in done.stderr
  ]
  assert [row[0] for row in rows] == [
    f'perturb_{side}' for side in _SIDES if side not in missing
  ]
  speeds = {row[0]: float(row[1]) for row in rows}
  # Far from the target: this machine may be at work.
  assert speeds['perturb_ours'] > 4 * speeds['perturb_published']
  assert speeds['perturb_elastic'] > 4 * speeds['perturb_elastic_scipy']
