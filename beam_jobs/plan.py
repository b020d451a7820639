"""What a long job will read, make and take, said before it begins.

A plan is one line. It is made from sizes of files and from a short probe on one
or two of the scans, always the same ones; a job whose result the disk cannot
hold does not begin.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os
import shutil
import tempfile
import time
from typing import TypeVar

from apache_beam.options import pipeline_options

from beam_jobs import amounts
from transvw_tf2 import errors
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import stored_bytes

# A file ends within a block of the file system.
BLOCK_BYTES = 4096
# Of each record in a TFRecord file, besides the record.
RECORD_FRAME_BYTES = 16

# A probe ends with so many usable scans, tries so many, or takes so long.
PROBED_SCANS = 2
_TRIED_SCANS = 4
_PROBE_SECONDS = 5.0
_PROBE_FILE_BYTES = 16 << 20

_T = TypeVar('_T')

# What a probe reads a scan by. A name of its own, so that whoever counts how
# often the passes of a job read a scan does not count the probe.
read_scan = reader.read_scan


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a job will do.

  Attributes:
    reads: what is read, as text.
    makes: what is written, as text; may be ''.
    seconds: that one worker takes; None where nothing could be measured.
    seconds_alone: that are not shared by several workers.
    workers: that share the work; None where the engine decides.
    needed_bytes: most that lies on the disk at any time.
    folder: of the output, or an existing one above it.
    free_bytes: free there.
    then: what is done with the result later, as text; may be ''.
  """

  reads: str
  makes: str
  seconds: float | None
  workers: int | None
  needed_bytes: int
  folder: str
  free_bytes: int
  seconds_alone: float = 0.0
  then: str = ''

  def line(self) -> str:
    """Returns the plan as one line for people."""
    parts = [
      self.reads,
      self.makes,
      time_text(self.seconds, self.seconds_alone, self.workers),
      f'needs {amounts.size(self.needed_bytes)},'
      f' {amounts.size(self.free_bytes)} free in {self.folder}',
      self.then,
    ]
    return 'plan: ' + '; '.join(one for one in parts if one)

  def announce(self) -> None:
    """Prints the line, and refuses what the disk cannot hold.

    Raises:
      UserError: as `check_space`.
    """
    print(self.line(), flush=True)
    check_space(self.needed_bytes, self.folder)


def make(
  *,
  reads: str,
  makes: str,
  seconds: float | None,
  needed_bytes: int,
  folder: str,
  options: pipeline_options.PipelineOptions | None,
  seconds_alone: float = 0.0,
  then: str = '',
) -> Plan:
  """Returns a plan for this machine: see `Plan`.

  Args:
    reads: see `Plan`, as all but:
    makes: see `Plan`.
    seconds: see `Plan`.
    needed_bytes: see `Plan`.
    folder: of the output, which need not exist.
    options: Beam options, for the number of workers.
    seconds_alone: see `Plan`.
    then: see `Plan`.
  """
  folder = existing_folder(folder)
  return Plan(
    reads=reads,
    makes=makes,
    seconds=seconds,
    seconds_alone=seconds_alone,
    workers=count_workers(options),
    needed_bytes=needed_bytes,
    folder=folder,
    free_bytes=free_bytes(folder),
    then=then,
  )


def reads_text(scan_files: Sequence[luna16.ScanFile], passes: int = 1) -> str:
  """Returns such as '712 scans, 94.1 GB to read twice'."""
  count = count_bytes(scan_files)
  size = f', {amounts.size(count)} to read' if count else ' to read'
  return f'{len(scan_files)} scans{size}{" twice" if passes > 1 else ""}'


def time_text(
  seconds: float | None, seconds_alone: float, workers: int | None
) -> str:
  """Returns such as 'about 2 h 10 min with 2 workers'."""
  if seconds is None:
    return 'time unknown, for no scan could be probed'
  if workers is None:
    whole = amounts.duration(seconds + seconds_alone)
    return f'about {whole} of work for one worker'
  text = amounts.duration(seconds / workers + seconds_alone)
  return f'about {text} with {workers} worker{"s" if workers > 1 else ""}'


def check_space(needed_bytes: int, folder: str) -> None:
  """Raises UserError where a file system does not hold so many bytes more."""
  folder = existing_folder(folder)
  free = free_bytes(folder)
  if free < needed_bytes:
    raise errors.UserError(
      f'{folder} has {amounts.size(free)} free, but the job needs up to'
      f' {amounts.size(needed_bytes)} there; free some, or write to another'
      ' disk'
    )


def check_new(output: str | None, what: str) -> str:
  """Returns where an output will lie, the working directory for None.

  Args:
    output: file or folder that a job will make.
    what: it is, for the message.

  Raises:
    UserError: it exists.
  """
  if output is None:
    return os.getcwd()
  output_lock.check_new(output, what)
  return os.path.dirname(os.path.abspath(output))


def existing_folder(path: str) -> str:
  """Returns a path, or the nearest folder above it that exists."""
  path = os.path.abspath(path)
  while not os.path.isdir(path):
    path = os.path.dirname(path)
  return path


def free_bytes(folder: str) -> int:
  """Returns the bytes free to this user in the file system of a folder."""
  return shutil.disk_usage(folder).free


def count_bytes(scan_files: Sequence[luna16.ScanFile]) -> int:
  """Returns what the scans take on the disk, 0 where it is not known."""
  return sum(stored_bytes.count(one.path) for one in scan_files)


def count_workers(
  options: pipeline_options.PipelineOptions | None,
) -> int | None:
  """Returns how many workers share a pass, None where the engine decides."""
  options = options or pipeline_options.PipelineOptions([])
  runner = options.view_as(pipeline_options.StandardOptions).runner
  # Beam takes the names in any case.
  if (runner or 'FnApiRunner').rpartition('.')[2].lower() not in (
    *('directrunner', 'fnapirunner', 'bundlebaseddirectrunner'),
  ):
    return None
  direct = options.view_as(pipeline_options.DirectOptions)
  if direct.direct_running_mode == 'in_memory':
    return 1
  return max(1, direct.direct_num_workers or os.cpu_count() or 1)


def count_shards(records: int, record_bytes: int) -> int:
  """Returns into how many shards TFDS divides a split by itself."""
  # Late, for it takes a while, and does not bring TensorFlow.
  from tensorflow_datasets.core.utils import shard_utils

  if not records:
    return 0
  return shard_utils.ShardConfig.calculate_number_shards(
    total_size=records * record_bytes, num_examples=records
  )


def data_set_bytes(
  records: int, record_bytes: int, largest_file: int, files: int
) -> int:
  """Returns what a TFDS data set takes at most while it is built.

  A cube lies once on the disk, and only for a moment twice: the file of its
  scan is removed when the shuffle of TFDS has its cubes, and a bucket of the
  shuffle, one of 1,000, when it was read for the shards.

  Args:
    records: of all splits.
    record_bytes: of each.
    largest_file: records of one scan, at most.
    files: files that lie there at the same time, besides those of TFDS.
  """
  whole = records * (record_bytes + RECORD_FRAME_BYTES + 8)
  # Buckets differ in size: twice the mean of the largest split.
  moving = largest_file * record_bytes + whole // 500
  return whole + moving + BLOCK_BYTES * (files + 1100)


def probe(
  scan_files: Sequence[luna16.ScanFile],
  work: Callable[[luna16.ScanFile], _T],
) -> list[_T]:
  """Does the work of a job on one or two scans.

  Args:
    scan_files: in any order; the choice depends on their ids alone.
    work: on a scan; a `reader.ScanError` passes on to another scan.

  Returns:
    What `work` returned, up to `PROBED_SCANS` values.
  """
  found = []
  start = time.monotonic()
  for one in stable_order(scan_files)[:_TRIED_SCANS]:
    if len(found) >= PROBED_SCANS or time.monotonic() - start > _PROBE_SECONDS:
      break
    try:
      found.append(work(one))
    except reader.ScanError:
      continue  # the job will say why
  return found


def stable_order(
  scan_files: Sequence[luna16.ScanFile],
) -> list[luna16.ScanFile]:
  """Returns scans in an order without meaning, the same for each run."""
  return sorted(
    scan_files, key=lambda one: (schema.stable_hash(one.scan_id), one.scan_id)
  )


@dataclasses.dataclass(frozen=True)
class Reading:
  """How long a scan took.

  Attributes:
    scan_file: the scan.
    seconds: all that is done once for each scan.
    cube_seconds: that each cube takes besides.
  """

  scan_file: luna16.ScanFile
  seconds: float
  cube_seconds: float = 0.0


def scale(
  readings: Sequence[Reading], scan_files: Sequence[luna16.ScanFile]
) -> float | None:
  """Returns the seconds of all scans: by bytes, or by number without those."""
  if not readings:
    return None
  seconds = sum(one.seconds for one in readings)
  probed = count_bytes([one.scan_file for one in readings])
  if not probed:
    return seconds / len(readings) * len(scan_files)
  return seconds / probed * count_bytes(scan_files)


def mean_cube_seconds(readings: Sequence[Reading]) -> float:
  """Returns the mean of `cube_seconds`, 0 without readings."""
  return sum(one.cube_seconds for one in readings) / max(1, len(readings))


def disk_seconds(folder: str, count: int) -> float:
  """Returns how long it takes to write so many bytes, from a short try.

  The file of the try has no name, so that nothing is left whatever happens. 0
  where it is too little to matter, or the disk too full for a try.
  """
  folder = existing_folder(folder)
  if count < _PROBE_FILE_BYTES or free_bytes(folder) < 4 * _PROBE_FILE_BYTES:
    return 0.0
  start = time.monotonic()
  try:
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(b'\0' * _PROBE_FILE_BYTES)
      file.flush()
      os.fsync(file.fileno())
  except OSError:
    return 0.0  # the job itself will say that it cannot write
  return (time.monotonic() - start) / _PROBE_FILE_BYTES * count
