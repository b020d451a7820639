r"""Cutting the cubes of all words out of all scans: two passes against others.

  python tools/benchmark.py cubes
  python tools/benchmark.py cubes --cold --processes 2
  python tools/benchmark.py cubes_memory

`cubes` times the same cubes three ways:

- ours: both passes, as `tfds build transvw_luna16` runs them, from the scans to
  the files of cubes; thumbnails, candidate places and ranks included.
- published: each scan is a float64 .npy file, loaded in full for each cube; a
  cube is resized with scikit-image. Timed on --sample cubes and scaled.
- lean: the .mhd that we read too is read as int16 with SimpleITK for each cube,
  and a cube is resized with SciPy.

The last two are timed too where one read serves the cubes of a patient and word
in all resolutions (`_shared`). Neither is charged with finding the words. With
scikit-image missing (`pip install scikit-image`), published is left out.

The scans lie in the page cache, if there is room; --cold drops a file from it
before each read, as where a collection is larger than the memory.

`cubes_memory` is the peak of the memory of all processes of ours together:
resident memory, where what processes share counts once for each.

The 70 % of the scans that are for training give one word each, so the words
wanted beyond them are the same ones at other places.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
from apache_beam.options import pipeline_options
import numpy as np
import process_memory
import psutil
from scipy import ndimage
import SimpleITK as sitk

from beam_jobs import discovery
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import geometry
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_WORDS = flags.DEFINE_integer('words', 44, 'Words.', lower_bound=1)
_SCANS = flags.DEFINE_integer('scans', 20, 'Scans.', lower_bound=3)
_SIZE = flags.DEFINE_list('size', ['512', '512', '128'], 'Voxels X,Y,Z.')
_PATIENTS = flags.DEFINE_integer(
  'patients', 200, 'Training patients per word, if there are.', lower_bound=1
)
_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Processes of ours; the others have one.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 3, 'Runs of each side; the median counts.', lower_bound=1
)
_SAMPLE = flags.DEFINE_integer(
  'sample', 60, 'Cubes that published is timed on.', lower_bound=1
)
_COLD = flags.DEFINE_boolean(
  'cold', False, 'Read scans from the disk, not from the page cache.'
)
_MORE_WORDS = flags.DEFINE_integer(
  'more_words', 440, 'Words that memory is compared at.', lower_bound=1
)
# For a process whose memory is measured, or a profiler.
_FOLDER = flags.DEFINE_string('folder', None, 'Of cubes_ours.')

_SCRIPT = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'benchmark.py'
)
# How far boxes reach beyond the cube of their word: shift, and side - 64.
_BEFORE, _BEYOND = 10, 26


def cubes() -> Iterator[tuple]:
  """Yields the lines of `cubes`."""
  resize = _find_resize()
  times = collections.defaultdict(list)
  with _made_scans() as folder:
    volumes = _write_volumes(folder) if resize else {}
    for _ in range(_REPEATS.value):
      instances, both, second = _run_ours(folder, _WORDS.value)
      times['cubes'].append(both)
      times['cubes_pass_2'].append(second)
      for suffix, jobs in (
        ('', [[one] for one in instances]),
        ('_shared', _by_patient(instances)),
      ):
        lean = _time_lean(jobs, folder)
        times[f'cubes_lean{suffix}'].append(lean)
        if resize:
          sample = _draw(jobs)
          published = _time_published(sample, volumes, resize)
          scaled = published * len(jobs) / len(sample)
          times[f'cubes_published{suffix}'].append(scaled)
  _tell(
    f'median of {_REPEATS.value} runs: {len(instances)} cubes,'
    f' {len(_by_patient(instances))} patients of'
  )
  ours = statistics.median(times['cubes'])
  for name, values in times.items():
    value = statistics.median(values)
    if name in ('cubes', 'cubes_pass_2'):
      yield name, value, 's', None, None
    else:
      yield name, value, 's', value / ours, 'cubes'


def cubes_memory() -> Iterator[tuple]:
  """Yields the lines of `cubes_memory`."""
  peaks = []
  with _made_scans() as folder:
    for words in (_WORDS.value, _MORE_WORDS.value):
      peaks.append(_measure_peak(folder, words))
  _tell('peaks of')
  yield 'cubes_memory', peaks[0] / 1e9, 'GB', None, None
  few = f'{_WORDS.value} words'
  name = f'cubes_memory_{_MORE_WORDS.value}_words'
  yield name, peaks[1] / 1e9, 'GB', peaks[1] / peaks[0], few


def cubes_ours() -> Iterator[tuple]:
  """Runs our side alone, on the scans in --folder/scans."""
  if _FOLDER.value is None:
    raise errors.UserError('cubes_ours needs --folder')
  _, both, second = _run_ours(_FOLDER.value, _WORDS.value)
  yield 'cubes', both, 's', None, None
  yield 'cubes_pass_2', second, 's', None, None


def _run_ours(folder, words):
  """Returns the cubes cut, seconds of both passes and of the second."""
  scan_files = luna16.find_scans(f'{folder}/scans')
  options = pipeline_options.PipelineOptions(
    [
      '--runner=FnApiRunner',
      '--default_sdk_harness_log_level=WARNING',
      f'--direct_num_workers={_PROCESSES.value}',
      '--direct_running_mode='
      + ('multi_processing' if _PROCESSES.value > 1 else 'in_memory'),
    ]
  )
  settings = settings_lib.Settings(words=words, instances=_PATIENTS.value)
  with tempfile.TemporaryDirectory(dir=folder) as work:
    _evict_all(folder)
    start = time.perf_counter()
    found = discovery.discover(scan_files, work, settings, options=options)
    first = time.perf_counter() - start
    instances = _fill_up(found.vocabulary, words)
    _evict_all(folder)
    start = time.perf_counter()
    discovery.cut_cubes(scan_files, instances, f'{work}/cubes', options=options)
    second = time.perf_counter() - start
  return instances, first + second, second


def _fill_up(
  found: vocabulary.Vocabulary, words: int
) -> list[vocabulary.Instance]:
  """Returns the cubes of so many words: those found, then at other places."""
  by_word = collections.defaultdict(list)
  for one in found.instances:
    by_word[one.word].append(one)
  size = np.array(_size())
  low = np.array([_BEFORE, _BEFORE, 0])
  high = size - schema.CUBE_SHAPE - np.array([_BEYOND, _BEYOND, 0])
  instances = []
  rng = np.random.default_rng(1)
  for word in range(words):
    same = found.words[word % len(found.words)]
    place = rng.integers(low, np.maximum(high, low) + 1)
    move = place - same.place if word >= len(found.words) else np.zeros(3, int)
    if (high < low).any():  # too small for another place
      move[:] = 0
    instances += [
      dataclasses.replace(
        one, word=word, origin=tuple(np.add(one.origin, move).tolist())
      )
      for one in by_word[same.word]
    ]
  return sorted(instances)


def _by_patient(instances) -> list[list[vocabulary.Instance]]:
  """Groups the resolutions of each patient and word."""

  def key(one):
    return one.split, one.word, one.rank

  return [list(same) for _, same in itertools.groupby(instances, key)]


def _draw(jobs) -> list[list[vocabulary.Instance]]:
  """Draws the jobs that published is timed on."""
  count = min(_SAMPLE.value, len(jobs))
  rows = np.random.default_rng(3).choice(len(jobs), count, replace=False)
  return [jobs[row] for row in sorted(rows)]


def _find_resize() -> Callable | None:
  """Returns scikit-image's resize, or None where it is not installed."""
  try:
    from skimage import transform
  except ImportError:
    print(
      'no scikit-image: cubes_published is left out; pip install scikit-image',
      file=sys.stderr,
    )
    return None
  return transform.resize


def _time_published(jobs, volumes, resize) -> float:
  """Times the cubes of `jobs`, one load for each, into a .npy file."""
  cut = np.zeros((sum(map(len, jobs)), *schema.CUBE_SHAPE))

  def cut_job(job, rows):
    volume = np.load(volumes[job[0].scan_id])
    for one, row in zip(job, rows, strict=True):
      box = volume[_slices(one)]
      if box.shape != schema.CUBE_SHAPE:
        shape = schema.CUBE_SHAPE
        box = resize(box, shape, preserve_range=True, anti_aliasing=False)
      cut[row] = box

  seconds = _time_jobs(jobs, volumes, cut_job)
  with tempfile.TemporaryFile(dir=os.path.dirname(min(volumes.values()))) as at:
    start = time.perf_counter()
    np.save(at, cut)
    return seconds + time.perf_counter() - start


def _time_lean(jobs, folder) -> float:
  """Times the cubes of `jobs`, one read for each, into a mapped file."""
  paths = _paths(folder)
  shape = (sum(map(len, jobs)), *schema.CUBE_SHAPE)
  with tempfile.NamedTemporaryFile(dir=folder) as file:
    cut = np.memmap(file, np.int16, 'w+', shape=shape)

    def cut_job(job, rows):
      image = sitk.ReadImage(paths[job[0].scan_id])
      hu = sitk.GetArrayViewFromImage(image).T
      for one, row in zip(job, rows, strict=True):
        cut[row] = _resize_lean(hu[_slices(one)])

    return _time_jobs(jobs, _data_files(paths), cut_job)


def _time_jobs(jobs, files, cut_job) -> float:
  """Times `cut_job(job, rows)`; its scan is in the page cache, or is not."""
  seconds, first = 0.0, 0
  for job in jobs:
    _evict(files[job[0].scan_id])
    start = time.perf_counter()
    cut_job(job, range(first, first + len(job)))
    seconds += time.perf_counter() - start
    first += len(job)
  return seconds


def _resize_lean(box):
  box = np.clip(box, schema.HU_MIN, schema.HU_MAX)
  if box.shape == schema.CUBE_SHAPE:
    return box
  zoom = np.divide(schema.CUBE_SHAPE, box.shape)
  box = box.astype(np.float32)
  return np.rint(
    ndimage.zoom(box, zoom, order=1, mode='mirror', grid_mode=True)
  )


def _slices(one: vocabulary.Instance):
  return tuple(
    slice(corner, corner + length)
    for corner, length in zip(one.origin, one.size, strict=True)
  )


def _measure_peak(folder, words) -> int:
  """Runs our side in a process of its own; returns bytes at the peak."""
  command = [
    *(sys.executable, _SCRIPT, 'cubes_ours', f'--folder={folder}'),
    *(f'--words={words}', f'--size={",".join(_SIZE.value)}'),
    *(f'--processes={_PROCESSES.value}', f'--patients={_PATIENTS.value}'),
  ]
  peak = 0
  with (
    tempfile.TemporaryFile('w+') as log,
    subprocess.Popen(command, stdout=log, stderr=log) as process,
  ):
    root = psutil.Process(process.pid)
    while process.poll() is None:
      peak = max(peak, process_memory.resident_bytes(root))
      time.sleep(0.02)
    if process.returncode:
      log.seek(0)
      last = (log.read().splitlines() or ['no output'])[-1]
      raise errors.UserError(f'{" ".join(command)} failed: {last}')
  return peak


@contextlib.contextmanager
def _made_scans() -> Iterator[str]:
  """Makes scans, 70 % for training, in a folder that is removed."""
  with tempfile.TemporaryDirectory() as folder:
    train = round(0.7 * _SCANS.value)
    for index in range(_SCANS.value):
      split = schema.TRAIN if index < train else schema.VALIDATION
      path = f'{folder}/scans/{split}/{index:03d}.mhd'
      os.makedirs(os.path.dirname(path), exist_ok=True)
      hu = _make_hu(index)
      reader.write_scan(path, hu, geometry.Geometry(hu.shape, (0.7, 0.7, 2.5)))
    yield folder


def _make_hu(index: int) -> np.ndarray:
  """Returns a body with two lungs, int16 [x, y, z], HU, with noise."""
  size = _size()
  rng = np.random.default_rng([2, index])
  x, y, z = np.ogrid[tuple(slice(-1, 1, side * 1j) for side in size)]
  hu = np.full(size, -1000, np.int16)
  wide, deep = rng.uniform(0.55, 0.85, size=2)
  hu[(x / wide) ** 2 + (y / deep) ** 2 + 0 * z < 1] = 40
  for side in (-0.5, 0.5):
    across = (x / wide - side) / 0.35
    hu[across**2 + (y / deep / 0.7) ** 2 + (z / 0.9) ** 2 < 1] = -850
  return hu + rng.integers(-20, 21, size, dtype=np.int16)


def _write_volumes(folder) -> dict[str, str]:
  """Writes the .npy files of published; returns their paths by scan id."""
  volumes = {}
  for scan_id, path in _paths(folder).items():
    volumes[scan_id] = f'{folder}/{scan_id}.npy'
    np.save(volumes[scan_id], reader.read_scan(path).hu.astype(np.float64))
  return volumes


def _paths(folder) -> dict[str, str]:
  scan_files = luna16.find_scans(f'{folder}/scans')
  return {one.scan_id: one.path for one in scan_files}


def _data_files(paths) -> dict[str, str]:
  """Returns the files that hold the voxels, by scan id."""
  return {
    scan_id: f'{path.removesuffix(".mhd")}.raw'
    for scan_id, path in paths.items()
  }


def _evict_all(folder) -> None:
  for path in _data_files(_paths(folder)).values():
    _evict(path)


def _evict(path: str) -> None:
  """With --cold, drops a file from the page cache."""
  if not _COLD.value:
    return
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _size() -> tuple[int, int, int]:
  try:
    x, y, z = (int(side) for side in _SIZE.value)
  except ValueError as error:
    raise errors.UserError(
      f'--size must be X,Y,Z in voxels, got {",".join(_SIZE.value)}'
    ) from error
  return x, y, z


def _tell(what: str) -> None:
  where = 'from the disk' if _COLD.value else 'in the page cache'
  print(
    f'{what} {_WORDS.value} words, {_SCANS.value} scans of'
    f' {" x ".join(_SIZE.value)} voxels {where}, {_PROCESSES.value} processes'
    ' of ours',
    file=sys.stderr,
  )
