"""Runs the two passes; shared by discover_words and the TFDS builder."""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import glob
import os
import shutil

from absl import logging
import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.runners import runner as beam_runner
import numpy as np
import pyarrow.parquet as pq

from beam_jobs import descriptor_file
from beam_jobs import descriptor_settings
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import transforms
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import descriptors
from transvw_tf2.discovery import extension
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import selection
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16
from transvw_tf2.scans import lung_box

_LIGHT_COLUMNS = [
  name for name in transforms.SUMMARY_SCHEMA.names if name != 'thumbnail'
]


@dataclasses.dataclass(frozen=True)
class Result:
  """What discovery found.

  Attributes:
    vocabulary: the words and their cubes; None where only descriptors were
      wanted.
    scans_read: scans of both splits that pass 1 read.
    rejected: sorted (scan, reason, detail) of those that cannot be used.
    reduced_borders: scans whose borders had to be reduced.
    relaxed_filters: those of them that had no place without soft tissue.
  """

  vocabulary: vocabulary.Vocabulary | None
  scans_read: int
  rejected: tuple[tuple[str, str, str], ...]
  reduced_borders: int
  relaxed_filters: int

  def summary_lines(self) -> list[str]:
    """Returns what a user wants to know, a line each."""
    lines = [f'scans: {self.scans_read} read, {_count_rejected(self.rejected)}']
    if self.reduced_borders:
      lines.append(
        f'warning: xy_border and z_border do not fit {self.reduced_borders}'
        ' scans and were reduced for them'
      )
    if self.relaxed_filters:
      lines.append(
        f'warning: {self.relaxed_filters} of these scans are too coarse for'
        ' max_soft_tissue; their places with the least soft tissue were taken'
      )
    return lines + (summary_lines(self.vocabulary) if self.vocabulary else [])


def summary_lines(words: vocabulary.Vocabulary) -> list[str]:
  """Returns what a user wants to know of a vocabulary, a line each."""
  return [
    f'words: {len(words.words)}, cubes: {len(words.instances)}',
    *(f'note: {note}' for note in words.notes),
  ]


def discover(
  scan_files: Sequence[luna16.ScanFile],
  folder: str,
  settings: settings_lib.Settings,
  *,
  strict: bool = False,
  extend: str | None = None,
  described_by: descriptor_settings.DescriptorSettings | None = None,
  descriptors_only: bool = False,
  runner: beam_runner.PipelineRunner | None = None,
  options: pipeline_options.PipelineOptions | None = None,
) -> Result:
  """Discovers the visual words of a collection and writes them to a folder.

  Writes vocabulary.json, instances.csv, rejected.csv, descriptors.npz and
  counters.json.

  Args:
    scan_files: from `luna16.find_scans`; held-out scans are not read.
    folder: an existing folder.
    settings: see `settings.Settings`.
    strict: stop at the first scan that cannot be used, or whose borders would
      have to be reduced, instead of going on with the others.
    extend: the vocabulary.json of a vocabulary of the same scans, or its
      folder, to which words are added until there are `settings.words`. The
      other settings are those it was made with.
    described_by: see `descriptor_settings.DescriptorSettings`; with `extend`,
      as the vocabulary was made, which does not say it.
    descriptors_only: write no words and no instances.
    runner: see `pipelines.run`.
    options: Beam options.

  Raises:
    UserError: too few usable scans, no word, a vocabulary that cannot be
      extended, a model or descriptors that cannot be used, or, with `strict`,
      a bad scan.
  """
  described_by = described_by or descriptor_settings.DescriptorSettings()
  wanted, settings, old = check(scan_files, settings, extend, described_by)
  # A worker may have another working directory.
  summaries = os.path.abspath(os.path.join(folder, 'summaries.tmp'))
  os.makedirs(summaries)
  try:
    stop = transforms.StopFile(os.path.join(summaries, 'stop'))
    log = progress.ScanLog(summaries)
    with progress.watch_scans(log, 'scans for words', wanted):
      pipelines.run(
        beam.Create(wanted)
        | transforms.SummariseScans(
          os.path.join(summaries, 'part'),
          settings,
          stop if strict else None,
          described_by.descriptor_model,
          log,
        ),
        runner=runner,
        options=options,
      )
    if line := stop.read():
      raise errors.UserError(
        f'strict: a scan cannot be used: {line}; mend or remove it, or leave'
        ' out strict to go on without it'
      )
    result = _build(
      summaries, folder, settings, extend, old, described_by, descriptors_only
    )
  except BaseException:
    # What went wrong must be seen, and not that this fails too.
    shutil.rmtree(summaries, ignore_errors=True)
    raise
  shutil.rmtree(summaries)
  _write_counters(folder, result, wanted)
  return result


def check(
  scan_files: Sequence[luna16.ScanFile],
  settings: settings_lib.Settings,
  extend: str | None,
  described_by: descriptor_settings.DescriptorSettings,
) -> tuple[
  list[luna16.ScanFile],
  settings_lib.Settings,
  vocabulary.Vocabulary | None,
]:
  """Checks all that can be without reading a scan.

  Args:
    scan_files: see `discover`.
    settings: see `discover`.
    extend: see `discover`.
    described_by: see `discover`.

  Returns:
    The scans to be read, sorted; the settings in force; and the vocabulary to
    be extended.

  Raises:
    UserError: as `discover`.
  """
  described_by.check_model()
  old = None
  if extend:
    old = _read_extended(extend, settings, scan_files)
    settings = dataclasses.replace(old.settings, words=settings.words)
  wanted = sorted(one for one in scan_files if one.split != schema.HELD_OUT)
  if not any(one.split == schema.TRAIN for one in wanted):
    raise errors.UserError(
      f'none of {len(scan_files)} scans belongs to the training split; LUNA16'
      ' folds 0-4 (subset0 .. subset4) or a train/ folder are needed'
    )
  if described_by.descriptors:
    descriptor_file.check(
      described_by.descriptors, [one.scan_id for one in wanted]
    )
  return wanted, settings, old


def _write_counters(folder: str, result: Result, wanted) -> None:
  progress.write_counters(
    folder,
    discovery={
      'scans_read': result.scans_read,
      'bytes_read': plan.count_bytes(wanted) or None,
      'rejected': progress.count_reasons(
        [reason for _, reason, _ in result.rejected]
      ),
      'reduced_borders': result.reduced_borders,
      'relaxed_filters': result.relaxed_filters,
    },
  )


def _read_extended(
  extend: str,
  settings: settings_lib.Settings,
  scan_files: Sequence[luna16.ScanFile],
) -> vocabulary.Vocabulary:
  """Reads the vocabulary to be extended and checks what can be yet."""
  folder, name = os.path.split(extend)
  if name != vocabulary.VOCABULARY_FILE:
    folder = extend
  old = vocabulary.read_vocabulary(folder or os.curdir)
  if settings.words <= len(old.words):
    raise errors.UserError(
      f'words is {settings.words}, but {extend} has {len(old.words)} already;'
      ' give more, the old ones included'
    )
  settings_lib.check_same(settings, old.settings, extend, leave_out=('words',))
  check_scans(scan_files, old)
  return old


def check_scans(
  scan_files: Sequence[luna16.ScanFile], words: vocabulary.Vocabulary
) -> None:
  """Raises UserError unless all scans of a vocabulary are there.

  Those that have come into another split are told: their cubes go into that of
  the vocabulary.
  """
  split_of = {one.scan_id: one.split for one in scan_files}
  moved = {}
  for one in words.instances:
    if one.scan_id not in split_of:
      raise _missing_scan(one.scan_id, scan_files)
    if split_of[one.scan_id] != one.split:
      moved[one.scan_id] = one.split
  if moved:
    first = min(moved)
    logging.warning(
      '%d scans lie in another split than in the vocabulary, whose split they'
      ' keep: the first, %s, is now of %s, there of %s',
      len(moved),
      first,
      split_of[first],
      moved[first],
    )


def _missing_scan(scan_id, scan_files) -> errors.UserError:
  return errors.UserError(
    f'the vocabulary needs scan {scan_id}, which is not among the'
    f' {len(scan_files)} scans given; use the scans it was made from'
  )


def copy_vocabulary(source: str, folder: str) -> vocabulary.Vocabulary:
  """Copies the files of a vocabulary that discover_words wrote.

  Args:
    source: its --output folder.
    folder: an existing folder.

  Raises:
    UserError: as `vocabulary.read_vocabulary`.
  """
  found = vocabulary.read_vocabulary(source)
  for name in (
    vocabulary.VOCABULARY_FILE,
    vocabulary.INSTANCES_FILE,
    vocabulary.REJECTED_FILE,
    vocabulary.DESCRIPTORS_FILE,
    progress.COUNTERS_FILE,
  ):
    # Only the first two are needed to cut the cubes.
    if os.path.exists(os.path.join(source, name)):
      shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
  return found


def cut_cubes(
  scan_files: Sequence[luna16.ScanFile],
  instances: Sequence[vocabulary.Instance],
  folder: str,
  *,
  frame: str = frames.VOXEL,
  runner: beam_runner.PipelineRunner | None = None,
  options: pipeline_options.PipelineOptions | None = None,
) -> list[transforms.CutRequest]:
  """Runs pass 2: makes a folder with one file of cubes per scan.

  Args:
    scan_files: the scans that the vocabulary was made from.
    instances: the cubes wanted.
    folder: a folder to make.
    frame: that of the vocabulary's settings.
    runner: see `pipelines.run`.
    options: Beam options.

  Returns:
    The requests, sorted by scan id, for `transforms.read_examples`.

  Raises:
    UserError: a scan is missing, or is not what it was.
  """
  folder = os.path.abspath(folder)
  try:
    requests = transforms.group_requests(
      scan_files, instances, folder, anti_aliasing=frame == frames.LUNG
    )
  except KeyError as error:
    raise _missing_scan(error.args[0], scan_files) from error
  os.makedirs(folder)
  stop = transforms.StopFile(os.path.join(folder, 'stop'))
  log = progress.ScanLog(folder)
  files = [one.scan_file for one in requests]
  with progress.watch_scans(log, 'scans for cubes', files):
    pipelines.run(
      beam.Create(requests) | transforms.CutCubes(stop, log),
      runner=runner,
      options=options,
    )
  if line := stop.read():
    raise errors.UserError(
      f'no cubes can be cut: {line}; use the scans that the vocabulary was made'
      ' from, or discover the words anew'
    )
  return requests


def cube_counters(
  requests: Sequence[transforms.CutRequest],
) -> dict[str, object]:
  """Returns what pass 2 counted, for `progress.write_counters`.

  Args:
    requests: from `cut_cubes`, all of which were met.
  """
  splits = collections.Counter(
    one.split for request in requests for one in request.instances
  )
  return {
    'scans_read': len(requests),
    'bytes_read': plan.count_bytes([one.scan_file for one in requests]) or None,
    'cubes': dict(splits),
  }


def _build(
  summaries, folder, settings, extend, old, described_by, descriptors_only
) -> Result:
  """Builds the vocabulary from the summaries of pass 1."""
  rows = sorted(
    _read_rows(summaries, _LIGHT_COLUMNS), key=lambda row: row['scan_id']
  )
  rejected = tuple(
    (row['scan_id'], row['reason'], row['detail'])
    for row in rows
    if row['reason']
  )
  usable = [row for row in rows if not row['reason']]
  train_ids = [r['scan_id'] for r in usable if r['split'] == schema.TRAIN]
  if len(train_ids) < 2:
    raise errors.UserError(
      f'{len(train_ids)} usable training scans, at least 2 are needed;'
      f' {len(rows)} scans were read, {_count_rejected(rejected)}'
      + (f', first {": ".join(rejected[0])}' if rejected else '')
    )
  scan_ids = [row['scan_id'] for row in usable]
  matrix = _describe(summaries, scan_ids, train_ids, described_by)
  found = None
  if not descriptors_only:
    found = selection.build_vocabulary(
      [_scan_row(row) for row in usable],
      dict(zip(scan_ids, matrix, strict=True)),
      settings,
    )
    if old:
      extension.check_extends(found, old, extend)
  vocabulary.write_rejected(folder, rejected)
  vocabulary.write_descriptors(folder, scan_ids, matrix)
  if found:
    vocabulary.write_vocabulary(folder, found)
  return Result(
    vocabulary=found,
    scans_read=len(rows),
    rejected=rejected,
    reduced_borders=sum(row['border_reduced'] for row in usable),
    relaxed_filters=sum(row['filter_relaxed'] for row in usable),
  )


def _count_rejected(rejected) -> str:
  """Returns such as '3 rejected (1 truncated, 2 unreadable)'."""
  reasons = collections.Counter(reason for _, reason, _ in rejected)
  text = ', '.join(f'{reasons[reason]} {reason}' for reason in sorted(reasons))
  return f'{len(rejected)} rejected' + (f' ({text})' if text else '')


def _describe(summaries, scan_ids, train_ids, described_by) -> np.ndarray:
  """Returns descriptors, float32 (N, D), in the order of `scan_ids`."""
  if described_by.descriptors:
    return descriptor_file.read(described_by.descriptors, scan_ids)
  if described_by.descriptor_model:
    described = {
      row['scan_id']: np.frombuffer(row['descriptor'], '<f4')
      for row in _read_rows(summaries, ['scan_id', 'descriptor'])
    }
    matrix = np.stack([described[scan_id] for scan_id in scan_ids])
    descriptor_file.check_model_output(
      matrix, scan_ids, described_by.descriptor_model
    )
    return matrix
  fit_ids = set(descriptors.choose_fit_scans(train_ids))
  fit = {
    row['scan_id']: _thumbnail(row)
    for row in _read_rows(summaries, ['scan_id', 'thumbnail'])
    if row['scan_id'] in fit_ids
  }
  pca = descriptors.fit_pca(np.stack([fit[key] for key in sorted(fit)]))
  # In the order of the files, a few at a time; each is projected alone, so
  # the order cannot change a bit.
  projected = {
    row['scan_id']: descriptors.project(pca, [_thumbnail(row)])[0]
    for row in _read_rows(summaries, ['scan_id', 'reason', 'thumbnail'])
    if not row['reason']
  }
  return np.stack([projected[scan_id] for scan_id in scan_ids])


def _read_rows(folder: str, columns: Sequence[str]) -> Iterator[dict]:
  """Reads rows of pass 1, a batch at a time."""
  for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*.parquet'))):
    for batch in pq.ParquetFile(path).iter_batches(64, columns=columns):
      yield from batch.to_pylist()


def _scan_row(row) -> selection.ScanRow:
  lungs = {
    field.name: tuple(row[f'lungs_{field.name}'])
    for field in dataclasses.fields(lung_box.LungBox)
  }
  return selection.ScanRow(
    scan_id=row['scan_id'],
    split=row['split'],
    size=tuple(row['size']),
    candidates=np.asarray(row['candidates'], np.int32).reshape(-1, 3),
    spacing=tuple(row['spacing']),
    lungs=lung_box.LungBox(**lungs) if lungs['low'] else None,
  )


def _thumbnail(row) -> np.ndarray:
  return np.frombuffer(row['thumbnail'], '<f4').reshape(
    descriptors.THUMBNAIL_SHAPE
  )
