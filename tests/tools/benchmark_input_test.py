"""The benchmark `input`, at a size that says nothing but that it runs."""

import os
import time

from absl.testing import flagsaver
import numpy as np
import pytest

from transvw_tf2 import schema

_TINY = {
  'cubes': 26,
  'shards': 3,
  'batch_size': 4,
  'shuffle_buffer': 8,
  'repeats': 1,
  'step_speed': 400.0,
  'gpu_speed': 200.0,
  'seconds': 0.1,
}


@pytest.fixture(name='benchmark')
def _benchmark(import_main):
  return import_main('tools.benchmark')


@pytest.fixture(name='file')
def _file(benchmark):
  """The file of the benchmark, and its flags at a tiny size."""
  module = benchmark.load('input')
  with flagsaver.flagsaver(**_TINY):
    yield module


def test_a_line_per_figure(benchmark, file, capsys):
  rows = [line.split(', ') for line in benchmark.lines('input')]
  gpu = 'a GPU of 200 cubes/s'
  assert [(row[0], row[2], row[4]) for row in rows] == [
    ('input', 'cubes/s', '-'),
    ('input_cold', 'cubes/s', 'input'),
    ('input_memory', 'cubes/s', 'input'),
    ('input_worker', 'cubes/s', 'input'),
    ('input_plain', 'cubes/s', 'input'),
    ('input_arrays', 'cubes/s', 'input'),
    ('input_core', 'cubes/s a core', gpu),
    ('input_memory_core', 'cubes/s a core', gpu),
    ('input_plain_core', 'cubes/s a core', gpu),
    ('input_arrays_core', 'cubes/s a core', gpu),
    ('input_start', 's', '-'),
    ('input_wait', '%', '-'),
    ('input_wait_gpu', '%', '-'),
  ]
  values = {row[0]: float(row[1]) for row in rows}
  for row in rows[1:6]:
    ratio = values[row[0]] / values['input']
    assert float(row[3]) == pytest.approx(ratio, rel=1e-2)
  for row in rows[6:10]:
    assert float(row[3]) == pytest.approx(values[row[0]] / 200, rel=1e-2)
  for name in ('input_wait', 'input_wait_gpu'):
    assert 0 <= values[name] < 100
  captured = capsys.readouterr()
  assert '1 epochs of 26 cubes in 3 shards, batch 4' in captured.err
  assert not captured.out  # what TFDS prints is not among the lines


def test_all_sides_give_the_same_cubes(file):
  made = [
    ((one['cube'].astype(np.float64) + 1000) / 2000).astype(np.float32)
    for one in file._make_examples()
  ]
  assert len(made) == 26 and made[0].shape == schema.CUBE_SHAPE
  by_sum = {round(float(cube.sum()), 1): cube for cube in made}
  assert len(by_sum) == 26
  with file._made_data() as data, file._opened(data.data_dir) as kept:
    shards = data.shards(schema.TRAIN)
    assert len(shards) == 3 and sum(shards.values()) == 26
    for name, make in file._make_sides(data, kept).items():
      batches = [batch.numpy() for batch in make(epoch=1)]
      # Of one of two workers.
      size = 2 if name == 'input_worker' else 4
      assert [batch.shape for batch in batches] == [(size, 64, 64, 32, 1)] * 6
      cubes = np.concatenate(batches)[..., 0]
      assert cubes.dtype == np.float32
      found = {round(float(cube.sum()), 1) for cube in cubes}
      assert len(found) == len(cubes)  # each once
      for cube in cubes:
        wanted = by_sum[round(float(cube.sum()), 1)]
        np.testing.assert_allclose(cube, wanted, atol=1e-6)
      # Shuffled, anew in another epoch.
      others = np.concatenate([batch.numpy() for batch in make(epoch=2)])
      assert not np.array_equal(cubes, others[..., 0])


def test_shards_are_of_the_projects_own_writer(file):
  # TFDS's own differ between any two runs.
  contents = []
  for _ in range(2):
    with file._made_data() as data:
      contents.append([])
      for path in data.shards(schema.TRAIN):
        assert os.path.getsize(path) > 8 * 64 * 64 * 32 * 2
        with open(path, 'rb') as shard:
          contents[-1].append(shard.read())
  assert contents[0] == contents[1]


@pytest.mark.parametrize(
  ('seconds', 'low', 'high'), [(0, 0, 0.1), (3, 0.6, 0.9)]
)
def test_waiting_is_the_time_beyond_the_steps(file, seconds, low, high):
  # A step takes 0.02 s; a batch no time, or three times as long.
  def make():
    while True:
      time.sleep(seconds * 0.02)
      yield 'batch'

  start, wait = file._consume(make(), speed=200.0)
  assert seconds * 0.02 <= start < seconds * 0.02 + 0.5
  assert low <= wait <= high
