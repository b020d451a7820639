"""The benchmarks, at sizes that say nothing but that they run."""

import collections
import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import psutil
import pytest
from scipy import ndimage

from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_TINY = {
  'words': 3,
  'scans': 3,
  'size': ['104', '104', '48'],
  'repeats': 1,
  'sample': 4,
}


@pytest.fixture
def benchmark(import_main):
  return import_main('tools.benchmark')


@pytest.fixture
def cubes(benchmark):
  """The file of the benchmark `cubes`, and its flags at a tiny size."""
  module = benchmark.load('cubes')
  with flagsaver.flagsaver(**_TINY):
    yield module


def _resize(box, shape, *, preserve_range, anti_aliasing):
  """Stands in for scikit-image's resize, which need not be installed."""
  assert preserve_range and not anti_aliasing
  zoom = np.divide(shape, box.shape)
  return ndimage.zoom(box, zoom, order=1, mode='mirror', grid_mode=True)


def test_cubes_prints_a_line_per_figure(benchmark, cubes, monkeypatch, capsys):
  monkeypatch.setattr(cubes, '_find_resize', lambda: _resize)
  with flagsaver.flagsaver(cold=True):
    rows = [line.split(', ') for line in benchmark.lines('cubes')]
  assert [(row[0], row[2], row[4]) for row in rows] == [
    ('cubes', 's', '-'),
    ('cubes_pass_2', 's', '-'),
    ('cubes_lean', 's', 'cubes'),
    ('cubes_published', 's', 'cubes'),
    ('cubes_lean_shared', 's', 'cubes'),
    ('cubes_published_shared', 's', 'cubes'),
  ]
  ours = float(rows[0][1])
  assert 0 < float(rows[1][1]) < ours
  for row in rows[2:]:
    assert float(row[3]) == pytest.approx(float(row[1]) / ours, rel=1e-2)
  # 3 words of 2 + 1 patients, training ones in 3 resolutions.
  assert '21 cubes, 9 patients of 3 words, 3 scans' in capsys.readouterr().err


def test_published_is_left_out_without_scikit_image(
  benchmark, cubes, monkeypatch, capsys
):
  monkeypatch.setitem(sys.modules, 'skimage', None)
  names = [line.split(', ')[0] for line in benchmark.lines('cubes')]
  assert names == ['cubes', 'cubes_pass_2', 'cubes_lean', 'cubes_lean_shared']
  assert 'no scikit-image: cubes_published is' in capsys.readouterr().err


def test_all_sides_cut_the_same_cubes(cubes, monkeypatch):
  cut = {}

  def keep(jobs, files, cut_job):
    # The array that the job writes to is in its closure.
    names = cut_job.__code__.co_freevars
    cells = dict(zip(names, cut_job.__closure__, strict=True))
    for row, job in enumerate(jobs):
      cut_job(job, range(row, row + 1))
    cut[files[jobs[0][0].scan_id].rpartition('.')[2]] = np.array(
      cells['cut'].cell_contents
    )
    return 1.0

  monkeypatch.setattr(cubes, '_time_jobs', keep)
  with cubes._made_scans() as folder:
    instances, _, _ = cubes._run_ours(folder, words=3)
    jobs = [[one] for one in instances]
    cubes._time_lean(jobs, folder)
    cubes._time_published(jobs, cubes._write_volumes(folder), _resize)
    paths = {
      one.scan_id: one.path for one in luna16.find_scans(f'{folder}/scans')
    }
    hu = {key: reader.read_scan(path).hu for key, path in paths.items()}
  assert set(cut) == {'raw', 'npy'}
  assert {one.resolution for one in instances} == {0, 1, 2}
  for row, one in enumerate(instances):
    wanted = tiny_scans.expected_cube(hu[one.scan_id], one.origin, one.size)
    np.testing.assert_allclose(cut['raw'][row], wanted, atol=0.51)
    # Not clipped, as published; so clipped here.
    published = np.clip(cut['npy'][row], -1000, 1000)
    np.testing.assert_allclose(published, wanted, atol=25)
    assert np.abs(published - wanted).mean() < 3


def test_words_are_filled_up_at_other_places(cubes):
  found = vocabulary.Vocabulary(
    settings=settings_lib.Settings(words=5),
    words=(vocabulary.Word(0, 'a', (20, 21, 3)),),
    instances=tuple(
      vocabulary.Instance(
        *('train', 0, rank, resolution, 'ab'[rank]),
        origin=(20 + shift, 21 - shift, 3),
        size=(side, side, 32),
        distance=0.5,
      )
      for rank in (0, 1)
      for resolution, side, shift in ((0, 64, 0), (1, 79, 9), (2, 50, -10))
    ),
  )
  with flagsaver.flagsaver(size=['130', '140', '50']):
    filled = cubes._fill_up(found, 5)
  assert filled == sorted(filled) and len(filled) == 5 * 6
  by_word = collections.defaultdict(list)
  for one in filled:
    by_word[one.word].append(one)
    end = np.add(one.origin, one.size)
    assert min(one.origin) >= 0 and (end <= (130, 140, 50)).all()
  assert by_word[0] == sorted(found.instances)
  assert len({same[0].origin for same in by_word.values()}) > 1
  for same in by_word.values():
    first = np.subtract(same[0].origin, by_word[0][0].origin)
    for one, old in zip(same, by_word[0], strict=True):
      assert one.size == old.size and one.scan_id == old.scan_id
      np.testing.assert_array_equal(np.subtract(one.origin, old.origin), first)


def test_memory_is_that_of_all_processes(cubes):
  # A process that starts another; each holds 150 MB.
  child = "held = b'1' * 150_000_000; input()"
  parent = (
    'import subprocess, sys; held = b"1" * 150_000_000;'
    f' subprocess.run([sys.executable, "-c", {child!r}])'
  )
  command = [sys.executable, '-c', parent]
  with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
    root = psutil.Process(process.pid)
    peak = 0
    while peak < 3e8 and process.poll() is None:
      peak = max(peak, cubes.process_memory.resident_bytes(root))
    process.communicate(b'\n')
  assert 3e8 <= peak < 4e8
  assert cubes.process_memory.resident_bytes(root) == 0  # it has ended


def test_a_run_that_fails_is_told(cubes, tmp_path):
  with pytest.raises(
    errors.UserError, match=r'cubes_ours .*failed: error: no f'
  ):
    cubes._measure_peak(os.fspath(tmp_path / 'gone'), 1)


def _run(*arguments):
  return subprocess.run(
    [sys.executable, 'tools/benchmark.py', *arguments],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.long
def test_the_command_measures_memory():
  done = _run(
    *('cubes_memory', '--words=1', '--more_words', '2', '--scans=3'),
    *('--size', '100,100,48'),
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split(', ') for line in done.stdout.splitlines()]
  assert [(row[0], row[2], row[4]) for row in rows] == [
    ('cubes_memory', 'GB', '-'),
    ('cubes_memory_2_words', 'GB', '1 words'),
  ]
  # Python with Beam and SimpleITK.
  assert 0.1 < float(rows[0][1]) < 2.0
  assert 0.8 < float(rows[1][3]) < 1.25


def test_wrong_commands_end_in_one_line():
  done = _run('cubs')
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: no benchmark 'cubs'; known are cubes, ")
  done = _run()
  assert done.returncode == 1
  assert done.stderr.startswith('error: wanted one name of a benchmark, got no')
