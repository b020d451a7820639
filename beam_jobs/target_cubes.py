"""Cuts the cubes of target tasks: each scan is read once.

No flags and no gin here: a fresh worker process has neither.
"""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import math
import os
import time

import apache_beam as beam
from apache_beam.options import pipeline_options
import numpy as np
import tensorflow_datasets as tfds
import threadpoolctl

from beam_jobs import amounts
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import transforms
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import target_cubes
from transvw_tf2.scans import target_places

# The other features of a record and their names, without the id of the scan.
_FEATURE_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Request:
  """All cubes wanted from one scan.

  Attributes:
    scan_file: the scan.
    split: of its cubes.
    places: finds the cubes, such as `target_places.AroundPoints`.
    cube: what a cube is.
    output: the file to write, of NumPy arrays.
  """

  scan_file: luna16.ScanFile
  split: str
  places: object
  cube: target_cubes.CubeSize
  output: str


class CutTargetsFn(beam.DoFn):
  """Reads a scan and writes its cubes to one file.

  Gives a list of (scan id, reason, detail) of what could not be had. With a
  stop file, the first of these stops the pass.
  """

  def __init__(
    self,
    stop: transforms.StopFile | None,
    log: progress.ScanLog | None = None,
  ):
    self._stop = stop
    self._log = log

  def process(self, request: Request) -> Iterator[list[tuple[str, str, str]]]:
    if self._stop and self._stop.read():
      return
    pipelines.count('scans_read')
    scan_id = request.scan_file.scan_id
    try:
      with (
        threadpoolctl.threadpool_limits(1),
        progress.on_scan(self._log, request.scan_file) as entry,
      ):
        found = self._cut(request)
        entry.cubes = len(found.cubes)
      rejected = found.rejected
      pipelines.count('cubes_written', len(found.cubes))
    except reader.ScanError as error:
      rejected = [(error.reason, error.detail)]
    for reason, _ in rejected:
      pipelines.count(f'rejected_{reason}')
    rows = [(scan_id, reason, detail) for reason, detail in rejected]
    if rows and self._stop:
      self._stop.write(': '.join(rows[0]))
    yield rows

  def _cut(self, request: Request) -> target_places.Targets:
    found, arrays = find_and_cut(request)
    temporary = f'{request.output}.{os.getpid()}'
    with open(temporary, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(temporary, request.output)
    return found


def find_and_cut(
  request: Request,
) -> tuple[target_places.Targets, dict[str, np.ndarray]]:
  """Reads a scan and cuts its cubes.

  Returns:
    What was found, and arrays with a row for each cube, but `spacing`.

  Raises:
    ScanError: the scan or its mask cannot be used.
  """
  # Of any size: what a cube lacks is air.
  scan = reader.read_scan(request.scan_file.path, cube_shape=(1, 1, 1))
  found = request.places.find(scan)
  shape = request.cube.shape
  cubes = np.empty((len(found.cubes), *shape), np.int16)
  arrays = {
    'cube': cubes,
    'label': np.array([one.label for one in found.cubes], np.int64),
    'number': np.array([one.number for one in found.cubes], np.int64),
    'origin': np.array([one.box.origin for one in found.cubes], np.int32),
    'size': np.array([one.box.size for one in found.cubes], np.int32),
    'place': np.array(
      [
        one.point or scan.geometry.voxel_to_world(one.box.middle)
        for one in found.cubes
      ]
    ),
    'spacing': np.array(scan.geometry.spacing, np.float32),
  }
  for row, one in enumerate(found.cubes):
    cubes[row] = target_cubes.cut_cube(scan.hu, one.box, shape)
  if found.cut_mask:
    arrays['mask'] = np.array(
      [found.cut_mask(one.box) for one in found.cubes], np.uint8
    ).reshape(-1, *shape)
  return found, arrays


def cut_targets(
  requests: Sequence[Request], folder: str, *, strict: bool = False, **engine
) -> list[tuple[str, str, str]]:
  """Cuts all cubes, a file per scan.

  Args:
    requests: what is wanted; their outputs lie in the folder.
    folder: a folder to make.
    strict: stop at the first thing that could not be had.
    **engine: see `pipelines.run`.

  Returns:
    Sorted (scan id, reason, detail) of what could not be had.

  Raises:
    UserError: strict, and there is such a thing.
  """
  os.makedirs(folder)
  stop = transforms.StopFile(os.path.join(folder, 'stop'))
  prefix = os.path.join(folder, 'rejected')
  log = progress.ScanLog(folder)
  files = [one.scan_file for one in requests]
  with progress.watch_scans(log, 'scans for cubes', files):
    pipelines.run(
      beam.Create(list(requests))
      | 'SpreadRequests' >> beam.Reshuffle()
      | 'CutTargets' >> beam.ParDo(CutTargetsFn(stop if strict else None, log))
      | 'ToJson' >> beam.Map(json.dumps)
      | 'WriteRejected' >> beam.io.WriteToText(prefix),
      **engine,
    )
  if line := stop.read():
    raise strict_error(line)
  rejected = []
  for name in sorted(os.listdir(folder)):
    if name.startswith('rejected-'):
      with open(os.path.join(folder, name), encoding='utf-8') as file:
        for line in file:
          rejected += [tuple(one) for one in json.loads(line)]
  return sorted(rejected)


def plan_targets(
  requests: Sequence[Request],
  masks: bool,
  folder: str,
  options: pipeline_options.PipelineOptions | None,
) -> plan.Plan:
  """Plans the data set of a target task.

  Args:
    requests: what is wanted.
    masks: whether each cube has a mask.
    folder: of the data set.
    options: Beam options.
  """
  by_scan = {one.scan_file: one for one in requests}
  files = list(by_scan)
  voxels = max((math.prod(one.cube.shape) for one in requests), default=0)
  longest = max((len(one.scan_id.encode('utf-8')) for one in files), default=0)
  # int16, and uint8 of a mask.
  record_bytes = voxels * (3 if masks else 2) + _FEATURE_BYTES + longest
  by_split = collections.Counter()
  for one in requests:
    by_split[one.split] += one.places.most_cubes
  cubes = by_split.total()
  shards = sum(
    plan.count_shards(count, record_bytes) for count in by_split.values()
  )

  def work(scan_file) -> plan.Reading:
    start = time.monotonic()
    with threadpoolctl.threadpool_limits(1):
      find_and_cut(by_scan[scan_file])
    return plan.Reading(scan_file, time.monotonic() - start)

  return plan.make(
    reads=plan.reads_text(files),
    makes=f'at most {cubes:,} cubes, {amounts.size(cubes * record_bytes)} in'
    f' {shards} shard{"s" if shards != 1 else ""}',
    seconds=plan.scale(plan.probe(files, work), files),
    seconds_alone=plan.disk_seconds(folder, 3 * cubes * record_bytes),
    needed_bytes=plan.data_set_bytes(
      cubes,
      record_bytes,
      max((one.places.most_cubes for one in requests), default=0),
      len(requests),
    ),
    folder=folder,
    options=options,
  )


def strict_error(line: str) -> errors.UserError:
  """Returns what `strict` raises for a line that names scan and reason."""
  return errors.UserError(
    f'strict: {line}; mend it, or leave out strict to go on without it'
  )


def count_examples(
  requests: Sequence[Request],
) -> dict[str, collections.Counter[int]]:
  """Returns how many cubes were cut, by split and number of the class."""
  counts = {one.split: collections.Counter() for one in requests}
  for one in requests:
    if os.path.exists(one.output):  # else the scan was rejected
      with np.load(one.output, allow_pickle=False) as file:
        counts[one.split].update(file['label'].tolist())
  return counts


def read_examples(
  requests: Sequence[Request],
) -> Iterator[tuple[str, dict]]:
  """Gives (key, example) of all cubes; removes each file that was read."""
  for request in requests:
    if not os.path.exists(request.output):
      continue
    with np.load(request.output, allow_pickle=False) as file:
      arrays = dict(file)
    scan_id = request.scan_file.scan_id
    for row, number in enumerate(arrays['number']):
      example = {
        'cube': arrays['cube'][row],
        'scan_id': scan_id,
        'origin': arrays['origin'][row],
        'size': arrays['size'][row],
        'place': arrays['place'][row],
        'spacing': arrays['spacing'],
      }
      if 'mask' in arrays:
        example['mask'] = arrays['mask'][row]
      else:
        example['label'] = int(arrays['label'][row])
      yield f'{scan_id}/{number:06d}', example
    os.remove(request.output)


def make_features(
  shape: Sequence[int], classes: Sequence[str] | None = None, masks=False
) -> tfds.features.FeaturesDict:
  """Returns the features of a cube.

  Args:
    shape: voxels of a cube, [x, y, z].
    classes: their names; None leaves them to be set.
    masks: whether a cube has a mask, rather than a class.
  """

  def volume(dtype):
    return tfds.features.Tensor(
      shape=tuple(shape), dtype=dtype, encoding=tfds.features.Encoding.BYTES
    )

  if masks:
    # 0 or 1, indexed as the cube.
    target = {'mask': volume(np.uint8)}
  else:
    names = None if classes is None else list(classes)
    target = {'label': tfds.features.ClassLabel(names=names)}
  return tfds.features.FeaturesDict(
    {
      # HU in [-1000, 1000], indexed [x, y, z].
      'cube': volume(np.int16),
      **target,
      'scan_id': tfds.features.Text(),
      # The box in the scan, voxels [x, y, z]; it may reach beyond the scan.
      'origin': tfds.features.Tensor(shape=(3,), dtype=np.int32),
      'size': tfds.features.Tensor(shape=(3,), dtype=np.int32),
      # World mm (LPS) of what has the label, or else of the middle of the box.
      'place': tfds.features.Tensor(
        shape=(3,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
      ),
      # mm between voxels of the scan, [x, y, z].
      'spacing': tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
  )


def output_path(folder: str, scan_id: str) -> str:
  """Returns the file of the cubes of a scan."""
  return os.path.join(folder, f'{schema.stable_hash(scan_id):016x}.npz')
