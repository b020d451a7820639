"""The two passes over the scans, as Beam transforms.

Each pass reads a scan once, and a worker holds one scan at a time. No flags and
no gin here: a fresh worker process has neither.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import os

import apache_beam as beam
import numpy as np
import pyarrow as pa
import threadpoolctl

from beam_jobs import pipelines
from beam_jobs import progress
from transvw_tf2 import schema
from transvw_tf2.discovery import cubes
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import summary
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16
from transvw_tf2.scans import lung_box
from transvw_tf2.scans import reader
from transvw_tf2.scans import thumbnail

# One row per scan read in pass 1: a summary, or a reason for its rejection.
SUMMARY_SCHEMA = pa.schema(
  [
    ('scan_id', pa.string()),
    ('split', pa.string()),
    ('reason', pa.string()),  # empty for a usable scan
    ('detail', pa.string()),
    ('size', pa.list_(pa.int32())),  # voxels [x, y, z]
    ('spacing', pa.list_(pa.float64())),  # mm [x, y, z]
    # A `lung_box.LungBox`, or nothing where none was found or wanted.
    ('lungs_low', pa.list_(pa.float64())),
    ('lungs_high', pa.list_(pa.float64())),
    ('lungs_low_cut', pa.list_(pa.bool_())),
    ('lungs_high_cut', pa.list_(pa.bool_())),
    ('candidates', pa.list_(pa.int32())),  # (n, 3) flattened, voxels
    ('border_reduced', pa.bool_()),
    ('filter_relaxed', pa.bool_()),
    # float32 (32, 32, 16) in C order, and empty where there is a descriptor.
    ('thumbnail', pa.binary()),
    ('descriptor', pa.binary()),  # float32 (D,), by an autoencoder
  ]
)

# One element per cube in a file of pass 2.
_CUBE_DTYPE = np.dtype(
  [
    ('cube', np.int16, schema.CUBE_SHAPE),  # HU, [x, y, z]
    ('spacing', np.float32, (3,)),  # mm, [x, y, z]
  ]
)


class StopFile:
  """Stops a pass at the first scan that must not be passed over.

  A file that all workers see says why; scans that follow are not read. An
  exception would reach the user as text that differs from engine to engine.
  """

  def __init__(self, path: str):
    self._path = path

  def write(self, line: str) -> None:
    """Writes the line, unless another worker was first."""
    with (
      contextlib.suppress(FileExistsError),
      open(self._path, 'x', encoding='utf-8') as file,
    ):
      file.write(line)

  def read(self) -> str:
    """Returns the line, or '' when nothing stopped the pass."""
    try:
      with open(self._path, encoding='utf-8') as file:
        return file.read()
    except FileNotFoundError:
      return ''


class SummariseScanFn(beam.DoFn):
  """Reads a scan and gives its row of `SUMMARY_SCHEMA`.

  A scan that cannot be used gives a row with the reason. With a stop file, it
  stops the pass, and so does a scan that its borders do not fit. For an
  autoencoder the thumbnail is that of `thumbnail.make_thumbnail`.
  """

  def __init__(
    self,
    settings: settings_lib.Settings,
    stop: StopFile | None,
    for_autoencoder: bool = False,
    log: progress.ScanLog | None = None,
  ):
    self._settings = settings
    self._stop = stop
    self._for_autoencoder = for_autoencoder
    self._log = log

  def process(self, scan_file: luna16.ScanFile) -> Iterator[dict]:
    if self._stop and self._stop.read():
      return
    pipelines.count('scans_read')
    row = {'scan_id': scan_file.scan_id, 'split': scan_file.split}
    try:
      with progress.on_scan(self._log, scan_file):
        row |= self._summarise(scan_file)
      yield row
    except reader.ScanError as error:
      pipelines.count(f'scans_rejected_{error.reason}')
      if self._stop:
        self._stop.write(str(error))
      yield row | _REJECTED | {'reason': error.reason, 'detail': error.detail}

  def _summarise(self, scan_file: luna16.ScanFile) -> dict:
    # One thread: Beam spreads the scans, and sums must not change with it.
    with threadpoolctl.threadpool_limits(1):
      scan = reader.read_scan(scan_file.path)
      one = summary.summarise_scan(
        scan_file.scan_id, scan_file.split, scan, self._settings
      )
      small = one.thumbnail.astype('<f4')
      if self._for_autoencoder:
        small = thumbnail.make_thumbnail(scan.hu).astype('<i2')
    if one.border_reduced:
      pipelines.count('scans_with_reduced_border')
      if self._stop:
        raise _border_error(scan_file.path, one.size, self._settings)
    if one.filter_relaxed:
      pipelines.count('scans_with_relaxed_filter')
    pipelines.count('places_found', len(one.candidates))
    lungs = dataclasses.asdict(one.lungs) if one.lungs else _NO_LUNGS
    if self._settings.frame == frames.LUNG:
      pipelines.count(
        'scans_with_lungs' if one.lungs else 'scans_without_lungs'
      )
    return {
      'reason': '',
      'detail': '',
      'size': list(one.size),
      'spacing': list(one.spacing),
      **{f'lungs_{name}': list(value) for name, value in lungs.items()},
      'candidates': one.candidates.ravel().tolist(),
      'border_reduced': one.border_reduced,
      'filter_relaxed': one.filter_relaxed,
      'thumbnail': small.tobytes(),
      'descriptor': b'',
    }


_NO_LUNGS = {field.name: () for field in dataclasses.fields(lung_box.LungBox)}

_REJECTED = {
  'size': [],
  'spacing': [],
  **{f'lungs_{name}': [] for name in _NO_LUNGS},
  'candidates': [],
  'border_reduced': False,
  'filter_relaxed': False,
  'thumbnail': b'',
  'descriptor': b'',
}


def _border_error(path, size, settings) -> reader.ScanError:
  return reader.ScanError(
    'border_too_large',
    f'{path} has {" x ".join(map(str, size))} voxels, where xy_border'
    f' {settings.xy_border} and z_border {settings.z_border} leave no place'
    ' for a cube; give smaller borders',
  )


class SummariseScans(beam.PTransform):
  """Pass 1: writes the rows of all scans to Parquet files with a prefix."""

  def __init__(
    self,
    prefix: str,
    settings: settings_lib.Settings,
    stop: StopFile | None,
    descriptor_model: str | None = None,
    log: progress.ScanLog | None = None,
  ):
    super().__init__()
    self._prefix = prefix
    self._settings = settings
    self._stop = stop
    self._descriptor_model = descriptor_model
    self._log = log

  def expand(self, scan_files):
    fn = SummariseScanFn(
      self._settings,
      self._stop,
      self._descriptor_model is not None,
      self._log,
    )
    rows = (
      scan_files
      | 'SpreadScans' >> beam.Reshuffle()
      | 'SummariseScan' >> beam.ParDo(fn)
    )
    if self._descriptor_model is not None:
      from beam_jobs import describe  # brings TensorFlow

      rows |= 'DescribeScans' >> describe.DescribeRows(self._descriptor_model)
    return rows | 'WriteSummaries' >> beam.io.WriteToParquet(
      self._prefix, SUMMARY_SCHEMA, file_name_suffix='.parquet'
    )


@dataclasses.dataclass(frozen=True)
class CutRequest:
  """All cubes wanted from one scan.

  Attributes:
    scan_file: the scan.
    instances: the cubes, in the order in which they are written.
    output: the file to write.
    anti_aliasing: see `cubes.cut_cube`.
  """

  scan_file: luna16.ScanFile
  instances: tuple[vocabulary.Instance, ...]
  output: str
  anti_aliasing: bool = False


class CutCubesFn(beam.DoFn):
  """Reads a scan and writes its cubes to one file, for `read_examples`.

  A scan that cannot be read, or lacks a box, stops the pass.
  """

  def __init__(self, stop: StopFile, log: progress.ScanLog | None = None):
    self._stop = stop
    self._log = log

  def process(self, request: CutRequest) -> Iterator[str]:
    if self._stop.read():
      return
    pipelines.count('scans_cut')
    try:
      with (
        threadpoolctl.threadpool_limits(1),
        progress.on_scan(self._log, request.scan_file) as entry,
      ):
        self._cut(request)
        entry.cubes = len(request.instances)
    except (reader.ScanError, ValueError) as error:
      self._stop.write(f'{request.scan_file.path}: {error}')
      return
    pipelines.count('cubes_written', len(request.instances))
    yield request.output

  def _cut(self, request: CutRequest) -> None:
    scan = reader.read_scan(request.scan_file.path)
    temporary = f'{request.output}.{os.getpid()}'
    header = {
      'descr': np.lib.format.dtype_to_descr(_CUBE_DTYPE),
      'fortran_order': False,
      'shape': (len(request.instances),),
    }
    record = np.zeros((), _CUBE_DTYPE)
    record['spacing'] = scan.geometry.spacing
    # One after the other: a scan that shows many words needs no more memory.
    # Not memory-mapped, for pages that wait to be written count as memory too.
    with open(temporary, 'wb') as file:
      np.lib.format.write_array_header_1_0(file, header)
      for one in request.instances:
        record['cube'] = cubes.cut_cube(
          scan.hu, one.origin, one.size, anti_aliasing=request.anti_aliasing
        )
        file.write(record.tobytes())
    os.replace(temporary, request.output)


class CutCubes(beam.PTransform):
  """Pass 2: reads each requested scan once and writes its cubes."""

  def __init__(self, stop: StopFile, log: progress.ScanLog | None = None):
    super().__init__()
    self._stop = stop
    self._log = log

  def expand(self, requests):
    return (
      requests
      | 'SpreadRequests' >> beam.Reshuffle()
      | 'CutCubes' >> beam.ParDo(CutCubesFn(self._stop, self._log))
    )


def group_requests(
  scan_files: Sequence[luna16.ScanFile],
  instances: Sequence[vocabulary.Instance],
  folder: str,
  *,
  anti_aliasing: bool = False,
) -> list[CutRequest]:
  """Groups instances by scan; one request, and one file, per scan.

  Args:
    scan_files: all scans.
    instances: the cubes wanted, of any number of scans.
    folder: where the files will be written.
    anti_aliasing: see `cubes.cut_cube`.

  Raises:
    KeyError: an instance names a scan that is not among `scan_files`.
  """
  by_id = {one.scan_id: one for one in scan_files}
  grouped: dict[str, list[vocabulary.Instance]] = {}
  for instance in sorted(instances):
    grouped.setdefault(instance.scan_id, []).append(instance)
  return [
    CutRequest(
      scan_file=by_id[scan_id],
      instances=tuple(grouped[scan_id]),
      output=os.path.join(folder, f'{schema.stable_hash(scan_id):016x}.npy'),
      anti_aliasing=anti_aliasing,
    )
    for scan_id in sorted(grouped)
  ]


def read_examples(request: CutRequest) -> Iterator[tuple[str, dict]]:
  """Gives (key, example) of the cubes that pass 2 cut out of a scan."""
  written = np.lib.format.open_memmap(request.output, 'r')
  for record, one in zip(written, request.instances, strict=True):
    yield (
      schema.example_key(one.scan_id, one.word, one.resolution),
      {
        'cube': np.asarray(record['cube']),
        'word': one.word,
        'scan_id': one.scan_id,
        'resolution': one.resolution,
        'origin': np.asarray(one.origin, np.int32),
        'size': np.asarray(one.size, np.int32),
        'spacing': np.asarray(record['spacing']),
        'rank': one.rank,
        'distance': np.float32(one.distance),
      },
    )


def read_and_remove_examples(
  requests: Sequence[CutRequest],
) -> Iterator[tuple[str, dict]]:
  """Gives (key, example) of all cubes; removes each file that was read.

  So a cube is on the disk once, but for the scan at hand: here, in the shuffle
  of TFDS, which removes what it has read too, or in its shards.
  """
  for request in requests:
    yield from read_examples(request)
    os.remove(request.output)
