"""Plans of finding visual words, and of cutting their cubes."""

from collections.abc import Sequence
import dataclasses
import math
import time

from apache_beam.options import pipeline_options
import numpy as np
import threadpoolctl

from beam_jobs import amounts
from beam_jobs import descriptor_settings
from beam_jobs import plan
from transvw_tf2 import schema
from transvw_tf2.discovery import cubes as cubes_lib
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import summary
from transvw_tf2.discovery import vocabulary as vocabulary_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import thumbnail

CUBE_BYTES = math.prod(schema.CUBE_SHAPE) * np.dtype(np.int16).itemsize
# The other features of a record and their names, without the id of the scan.
FEATURE_BYTES = 320

# Left by pass 1 for each scan until the words are found: a small thumbnail and
# the places; then descriptors, a row of instances.csv and the like.
_SUMMARY_BYTES = 96 << 10
_INSTANCE_BYTES = 256
_DESCRIPTOR_BYTES = 4096
# Seconds to make a record of a cube and to shuffle it, on one core.
RECORD_SECONDS = 0.002


@dataclasses.dataclass(frozen=True)
class CubeCounts:
  """Words and cubes, as far as they are known.

  Attributes:
    words: number of words.
    by_split: cubes of each split.
    scans: that hold cubes.
    record_bytes: of a cube in the data set.
    exact: whether these are the numbers, rather than the most there can be.
  """

  words: int
  by_split: dict[str, int]
  scans: tuple[luna16.ScanFile, ...]
  record_bytes: int
  exact: bool

  @property
  def cubes(self) -> int:
    return sum(self.by_split.values())

  def text(self) -> str:
    """Returns such as '44 words, at most 27,720 cubes, 7.3 GB in 68 shards'."""
    shards = sum(
      plan.count_shards(count, self.record_bytes)
      for count in self.by_split.values()
    )
    most = '' if self.exact else 'at most '
    return (
      f'{self.words} words, {most}{self.cubes:,} cubes,'
      f' {amounts.size(self.cubes * self.record_bytes)} in {shards}'
      f' shard{"s" if shards > 1 else ""}'
    )

  def needed_bytes(self, writer: str) -> int:
    """Returns what a build takes on the disk at most."""
    most_of_scan = self.words * len(schema.TRAIN_RESOLUTIONS)
    needed = plan.data_set_bytes(
      self.cubes,
      self.record_bytes,
      min(most_of_scan, self.cubes),
      len(self.scans),
    )
    if writer == 'beam':  # the files of all scans stay until the end
      needed += self.cubes * self.record_bytes
    return needed


def count_most(
  scan_files: Sequence[luna16.ScanFile], settings: settings_lib.Settings
) -> CubeCounts:
  """Returns the most words and cubes that there can be.

  Each word needs a training scan of its own, and takes each patient once.

  Args:
    scan_files: of training and validation.
    settings: of discovery.
  """
  train = sum(one.split == schema.TRAIN for one in scan_files)
  validation = len(scan_files) - train
  words = min(settings.words, train)
  return CubeCounts(
    words=words,
    by_split={
      schema.TRAIN: words
      * min(settings.instances, train)
      * len(schema.TRAIN_RESOLUTIONS),
      schema.VALIDATION: words
      * min(settings.validation_instances, validation)
      * len(schema.VALIDATION_RESOLUTIONS),
    },
    scans=tuple(scan_files),
    record_bytes=_record_bytes(one.scan_id for one in scan_files),
    exact=False,
  )


def count_cubes(
  scan_files: Sequence[luna16.ScanFile],
  words: vocabulary_lib.Vocabulary,
) -> CubeCounts:
  """Returns how many cubes of which scans a vocabulary has."""
  scan_ids = {one.scan_id for one in words.instances}
  return CubeCounts(
    words=len(words.words),
    by_split={
      split: sum(one.split == split for one in words.instances)
      for split in (schema.TRAIN, schema.VALIDATION)
    },
    scans=tuple(one for one in scan_files if one.scan_id in scan_ids),
    record_bytes=_record_bytes(scan_ids),
    exact=True,
  )


def _record_bytes(scan_ids) -> int:
  longest = max((len(one.encode('utf-8')) for one in scan_ids), default=0)
  return CUBE_BYTES + FEATURE_BYTES + longest


def plan_discovery(
  scan_files: Sequence[luna16.ScanFile],
  settings: settings_lib.Settings,
  folder: str,
  *,
  described_by: descriptor_settings.DescriptorSettings,
  descriptors_only: bool = False,
  measure: bool = False,
  options: pipeline_options.PipelineOptions | None = None,
) -> plan.Plan:
  """Plans a run of discover_words, and says what a build would take then.

  Args:
    scan_files: of training and validation.
    settings: of discovery.
    folder: of the output.
    described_by: see `descriptor_settings.DescriptorSettings`.
    descriptors_only: no words are wanted.
    measure: whether the quality of the words is measured.
    options: Beam options.
  """
  readings = _probe(scan_files, settings, described_by)
  counts = count_most(scan_files, settings)
  seconds = plan.scale(readings, scan_files)
  needed = _discovery_bytes(counts, folder_of=scan_files)
  reads = plan.reads_text(scan_files, 2 if measure else 1)
  makes = f'at most {counts.words} words'
  then = _build_text(counts, readings, folder, options)
  if descriptors_only:
    makes, then = f'{len(scan_files)} descriptors', ''
  elif measure:
    measured = min(quality.MOST_CUBES, counts.cubes)
    needed += measured * CUBE_BYTES + plan.BLOCK_BYTES * len(scan_files)
    if seconds is not None:
      # Reading is most of it.
      seconds = 2 * seconds + measured * plan.mean_cube_seconds(readings)
  return plan.make(
    reads=reads,
    makes=makes,
    seconds=seconds,
    needed_bytes=needed,
    folder=folder,
    options=options,
    then=then,
  )


def plan_build(
  scan_files: Sequence[luna16.ScanFile],
  words: settings_lib.Settings | vocabulary_lib.Vocabulary,
  folder: str,
  *,
  described_by: descriptor_settings.DescriptorSettings,
  writer: str,
  options: pipeline_options.PipelineOptions | None = None,
) -> plan.Plan:
  """Plans a build of transvw_luna16.

  Args:
    scan_files: of training and validation.
    words: settings of discovery, or the words that were found before.
    folder: of the data set.
    described_by: see `descriptor_settings.DescriptorSettings`.
    writer: of the config.
    options: Beam options.
  """
  if isinstance(words, settings_lib.Settings):
    counts, settings = count_most(scan_files, words), words
    passes, needed = 2, _discovery_bytes(counts, folder_of=scan_files)
  else:
    counts, settings = count_cubes(scan_files, words), words.settings
    passes, needed = 1, 0
  readings = _probe(counts.scans, settings, described_by)
  seconds = plan.scale(readings, counts.scans)
  if seconds is not None:
    seconds = passes * seconds + counts.cubes * plan.mean_cube_seconds(readings)
  return plan.make(
    reads=plan.reads_text(counts.scans, passes),
    makes=counts.text(),
    seconds=seconds,
    seconds_alone=_writing_seconds(counts, folder),
    needed_bytes=needed + counts.needed_bytes(writer),
    folder=folder,
    options=options,
  )


def _discovery_bytes(counts: CubeCounts, folder_of) -> int:
  of_scans = len(folder_of) * (_SUMMARY_BYTES + _DESCRIPTOR_BYTES)
  return of_scans + counts.cubes * _INSTANCE_BYTES + (1 << 20)


def _writing_seconds(counts: CubeCounts, folder: str) -> float:
  # As files of scans, as shuffled files and as shards.
  whole = 3 * counts.cubes * counts.record_bytes
  return plan.disk_seconds(folder, whole) + counts.cubes * RECORD_SECONDS


def _build_text(counts, readings, folder, options) -> str:
  """Says what tfds build would make of the words, and take for it."""
  seconds = plan.scale(readings, counts.scans)
  if seconds is not None:
    seconds += counts.cubes * plan.mean_cube_seconds(readings)
  time_text = plan.time_text(
    seconds, _writing_seconds(counts, folder), plan.count_workers(options)
  )
  return (
    f'tfds build then makes {counts.text()}, {time_text}, needs'
    f' {amounts.size(counts.needed_bytes("disk"))}'
  )


def _probe(scan_files, settings, described_by) -> list[plan.Reading]:
  """Reads and summarises a scan or two, and cuts some cubes of them."""
  encoder = None
  if described_by.descriptor_model:
    from beam_jobs import describe  # brings TensorFlow

    encoder = describe.EncoderHandler(
      described_by.descriptor_model
    ).load_model()

  def work(scan_file) -> plan.Reading:
    start = time.monotonic()
    with threadpoolctl.threadpool_limits(1):
      scan = plan.read_scan(scan_file.path)
      summary.summarise_scan(scan_file.scan_id, scan_file.split, scan, settings)
      if encoder is not None:
        encoder.embed(thumbnail.make_thumbnail(scan.hu)[np.newaxis])
      seconds = time.monotonic() - start
      cube_seconds = _time_cubes(scan.hu, settings.frame)
    return plan.Reading(scan_file, seconds, cube_seconds)

  return plan.probe(scan_files, work)


def _time_cubes(hu: np.ndarray, frame: str) -> float:
  """Returns the mean seconds of a cube; one of three has its native size."""
  x, y, z = schema.CUBE_SHAPE
  resized = (min(72, hu.shape[0]), min(72, hu.shape[1]), z)
  start = time.monotonic()
  for size in ((x, y, z), resized, resized):
    cubes_lib.cut_cube(hu, (0, 0, 0), size, anti_aliasing=frame == frames.LUNG)
  return (time.monotonic() - start) / 3
