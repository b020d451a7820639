r"""A rehearsal of `tfds build transvw_luna16` at the size of real scans.

  python tools/make_phantom.py --out FULL_SIZE --scans 80 --size 512,512,250 \
      --seed 700
  python tools/benchmark.py scale --scan_folder FULL_SIZE --scans 40,80

builds the data set of some scans and of more of them, the former among the
latter, on one worker process and on several, and yields for each

- scale_N_sequential: MB/s of reading and decoding the scans one after the other
  with SimpleITK in one process, and nothing else;
- scale_N_P_pass_1 and _pass_2: MB/s of the passes, and what that is of
  sequential reading; scans of the first and last tenth, when workers start and
  run out of work, left out;
- scale_N_P_steady: scans/min through both passes at those speeds;
- scale_N_P_total: minutes of the whole command, with its start, the vocabulary
  and the shards;
- scale_N_P_memory: peak of the resident memory of all its processes; what they
  share counts once for each.

Then `scale_forecast` tells the minutes of the larger build as forecast from the
smaller, and scale_888 and scale_100000 the hours and the disk of so many scans
of this size on this machine, with the published 44 words: each scan is read
once in pass 1, at most 44 times 230 of them once more, and cubes lie on the
disk once.

NumPy, BLAS and ITK have one thread in each process. Files that were read lie in
the page cache as far as there is room.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

from absl import flags
import process_memory
import psutil
import SimpleITK as sitk

from beam_jobs import progress
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import luna16

_SCAN_FOLDER = flags.DEFINE_string('scan_folder', None, 'Scans, as of LUNA16.')
_SCANS = flags.DEFINE_list('scans', ['40', '80'], 'How many, in rising order.')
_PROCESSES = flags.DEFINE_list('processes', ['1', '2'], 'Worker processes.')
_WORDS = flags.DEFINE_integer('words', 20, 'Words.', lower_bound=1)
_BORDERS = flags.DEFINE_list(
  'borders', ['100', '30'], 'xy_border and z_border, voxels.'
)

_LOOK_SECONDS = 0.05
# Of the scans of a pass, at both of its ends, that do not count as steady.
_RAMP = 0.1
# Training and validation patients per word, as published.
_INSTANCES, _VALIDATION_INSTANCES = 200, 30
_ONE_THREAD = {
  'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS': '1',
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'TF_CPP_MIN_LOG_LEVEL': '2',
}


@dataclasses.dataclass(frozen=True)
class Pass:
  """A pass over scans, as it was watched.

  Attributes:
    scans: how many were read.
    steady: seconds per scan between its ramps.
  """

  scans: int
  steady: float


@dataclasses.dataclass(frozen=True)
class Build:
  """A whole run of `tfds build`.

  Attributes:
    passes: the two passes.
    start: seconds until the first scan was read.
    seconds: from start to end.
    memory: peak of all processes, bytes.
    cubes: written.
    scan_bytes: of the files of a scan, mean.
  """

  passes: tuple[Pass, Pass]
  start: float
  seconds: float
  memory: int
  cubes: int
  scan_bytes: float

  def forecast(self, scans: int, read_again: int, cubes: int) -> float:
    """Returns the seconds that a build of other amounts would take.

    Args:
      scans: read in pass 1.
      read_again: those of them read in pass 2.
      cubes: written.
    """
    first, second = self.passes
    passes = first.scans * first.steady + second.scans * second.steady
    # The vocabulary and the shards, most of it for each cube.
    rest = max(0.0, self.seconds - self.start - passes)
    return (
      self.start
      + scans * first.steady
      + read_again * second.steady
      + rest * cubes / self.cubes
    )


def scale() -> Iterator[tuple]:
  """Yields the lines of `scale`."""
  counts, processes = _read_flags()
  builds = {}
  for count in counts:
    with _linked_scans(count) as folder:
      speed = _read_in_sequence(folder)
      sequential = f'scale_{count}_sequential'
      yield sequential, speed / 1e6, 'MB/s', None, None
      for workers in processes:
        one = builds[count, workers] = _build(folder, workers)
        slower = builds[count, processes[0]]
        yield from _lines(f'scale_{count}_{workers}', one, speed, sequential)
        yield from _steady_lines(count, workers, processes[0], one, slower)
  workers = processes[-1]
  small, large = (builds[count, workers] for count in (counts[0], counts[-1]))
  first, second = large.passes
  forecast = small.forecast(first.scans, second.scans, large.cubes)
  yield (
    *(f'scale_forecast_{counts[-1]}', forecast / 60, 'min'),
    *(forecast / large.seconds, f'scale_{counts[-1]}_{workers}_total'),
  )
  for count in (888, 100_000):
    yield from _extrapolate(large, count)


def _extrapolate(build, count) -> Iterator[tuple]:
  """Yields the hours and the disk of so many scans with the paper's words."""
  words = 44
  again = min(count, words * (_INSTANCES + _VALIDATION_INSTANCES))
  train = min(_INSTANCES, count)
  cubes = words * (3 * train + min(_VALIDATION_INSTANCES, count))
  seconds = build.forecast(count, again, cubes)
  name = f'scale_{count}'
  yield f'{name}_time', seconds / 3600, 'h', None, None
  yield f'{name}_read', count * build.scan_bytes / 1e9, 'GB', None, None
  cube_bytes = 2 * schema.CUBE_SHAPE[0] * schema.CUBE_SHAPE[1]
  cube_bytes *= schema.CUBE_SHAPE[2]
  yield f'{name}_disk', cubes * cube_bytes / 1e9, 'GB', None, None


def _lines(name, build, speed, sequential) -> Iterator[tuple]:
  for number, one in enumerate(build.passes, 1):
    rate = build.scan_bytes / one.steady
    yield (
      *(f'{name}_pass_{number}', rate / 1e6, 'MB/s'),
      *(rate / speed, sequential),
    )
  yield f'{name}_total', build.seconds / 60, 'min', None, None
  yield f'{name}_memory', build.memory / 1e9, 'GB', None, None


def _steady_lines(count, workers, fewest, build, slower) -> Iterator[tuple]:
  """Yields scans/min through both passes, beside those of fewest workers."""

  def rate(one):
    return 60 / sum(each.steady for each in one.passes)

  name = f'scale_{count}_{workers}_steady'
  if workers == fewest:
    yield name, rate(build), 'scans/min', None, None
  else:
    ratio = rate(build) / rate(slower)
    other = f'scale_{count}_{fewest}_steady'
    yield name, rate(build), 'scans/min', ratio, other


@contextlib.contextmanager
def _linked_scans(count: int) -> Iterator[str]:
  """Links the first scans, 70 % of them for training, into a folder."""
  paths = sorted(one.path for one in luna16.find_scans(_SCAN_FOLDER.value))
  if len(paths) < count:
    raise errors.UserError(
      f'{_SCAN_FOLDER.value} has {len(paths)} scans that may be read, wanted'
      f' {count}: make more with tools/make_phantom.py, or lower --scans'
    )
  with tempfile.TemporaryDirectory() as folder:
    for index, path in enumerate(paths[:count]):
      split = schema.TRAIN if index % 10 < 7 else schema.VALIDATION
      os.makedirs(f'{folder}/{split}', exist_ok=True)
      for one in glob.glob(f'{glob.escape(os.path.splitext(path)[0])}.*'):
        os.symlink(
          os.path.abspath(one), f'{folder}/{split}/{os.path.basename(one)}'
        )
    yield folder


def _read_in_sequence(folder) -> float:
  """Returns bytes per second of reading and decoding, one thread."""
  threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
  sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
  paths = [one.path for one in luna16.find_scans(folder)]
  start = time.perf_counter()
  for path in paths:
    sitk.GetArrayFromImage(sitk.ReadImage(path))
  seconds = time.perf_counter() - start
  sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
  return len(paths) * _scan_bytes(folder) / seconds


def _scan_bytes(folder) -> float:
  """Returns the mean bytes of a scan."""
  files = glob.glob(f'{folder}/*/*')
  scans = luna16.find_scans(folder)
  return sum(os.path.getsize(one) for one in files) / len(scans)


def _build(folder, workers) -> Build:
  """Builds the data set in a process of its own, and watches it."""
  xy_border, z_border = map(int, _BORDERS.value)
  config = {
    'name': 'scale',
    'words': _WORDS.value,
    'xy_border': xy_border,
    'z_border': z_border,
  }
  mode = 'multi_processing' if workers > 1 else 'in_memory'
  with (
    tempfile.TemporaryDirectory() as data_dir,
    tempfile.TemporaryFile('w+') as log,
  ):
    command = [
      *(os.path.join(os.path.dirname(sys.executable), 'tfds'), 'build'),
      *('transvw_luna16', '--imports', 'beam_jobs.transvw_luna16'),
      *('--manual_dir', folder, '--data_dir', data_dir),
      *('--config', json.dumps(config), '--beam_pipeline_options'),
      f'runner=FnApiRunner,direct_num_workers={workers},'
      f'direct_running_mode={mode}',
    ]
    watch = _Watch(data_dir)
    with subprocess.Popen(
      command, stdout=log, stderr=log, env=os.environ | _ONE_THREAD
    ) as process:
      watch.until_end(process)
    if process.returncode:
      log.seek(0)
      last = (log.read().splitlines() or ['no output'])[-1]
      raise errors.UserError(f'{" ".join(command)} failed: {last}')
    (path,) = glob.glob(f'{data_dir}/*/*/*/{progress.COUNTERS_FILE}')
    counters = progress.read_counters(os.path.dirname(path))
  return Build(
    passes=watch.passes(),
    start=watch.start(),
    seconds=watch.seconds,
    memory=watch.memory,
    cubes=sum(counters['cubes']['cubes'].values()),
    scan_bytes=_scan_bytes(folder),
  )


class _Watch:
  """Notes when scans are done, and the memory, while a build runs."""

  def __init__(self, data_dir):
    self._data_dir = data_dir
    self._begin = time.perf_counter()
    self._ends: dict[str, list[float]] = {}
    self.memory = 0
    self.seconds = 0.0

  def until_end(self, process) -> None:
    root = psutil.Process(process.pid)
    while process.poll() is None:
      self._look_at_logs()
      self.memory = max(self.memory, process_memory.resident_bytes(root))
      time.sleep(_LOOK_SECONDS)
    self.seconds = time.perf_counter() - self._begin

  def _look_at_logs(self) -> None:
    now = time.perf_counter() - self._begin
    for path in glob.glob(
      f'{self._data_dir}/**/{progress.LOG_FILE}', recursive=True
    ):
      folder = os.path.dirname(path)
      entries, _ = progress.ScanLog(folder).read()
      ends = self._ends.setdefault(folder, [])
      ends += [now] * (len(entries) - len(ends))

  def start(self) -> float:
    """Returns the seconds before a scan was done."""
    return min(ends[0] for ends in self._ends.values() if ends)

  def passes(self) -> tuple[Pass, ...]:
    """Returns the passes in their order."""
    ordered = sorted((ends for ends in self._ends.values() if ends), key=min)
    return tuple(Pass(len(ends), _steady(ends)) for ends in ordered)


def _steady(ends: Sequence[float]) -> float:
  """Returns seconds per scan, without the first and last of a pass."""
  skip = max(1, round(_RAMP * len(ends)))
  kept = ends[skip - 1 : len(ends) - skip]
  if len(kept) < 2 or kept[-1] == kept[0]:  # too few to tell
    return ends[-1] / len(ends)
  return (kept[-1] - kept[0]) / (len(kept) - 1)


def _read_flags() -> tuple[list[int], list[int]]:
  if not _SCAN_FOLDER.value:
    raise errors.UserError('scale needs --scan_folder')
  numbers = []
  for name, texts in (('scans', _SCANS.value), ('processes', _PROCESSES.value)):
    try:
      values = [int(text) for text in texts]
    except ValueError:
      values = []
    if not values or min(values) < 1 or values != sorted(set(values)):
      raise errors.UserError(
        f'--{name} is {",".join(texts)}, wanted rising whole numbers such as'
        ' 1,2'
      )
    numbers.append(values)
  return numbers[0], numbers[1]
