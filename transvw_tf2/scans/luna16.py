"""Finds the scans of a folder: LUNA16's layout or train/ and validation/."""

from collections.abc import Callable
from collections.abc import Iterator
import csv
import dataclasses
import itertools
import math
import os
import re

from absl import logging

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage

TRAIN_SUBSETS = range(5)
VALIDATION_SUBSETS = range(5, 7)
ANNOTATIONS_FILE = 'annotations.csv'
CANDIDATES_FILE = 'candidates_V2.csv'
LUNG_MASK_FOLDER = 'seg-lungs-LUNA16'

_SUBSET = re.compile(r'subset(\d)')


class LayoutError(errors.UserError):
  """A folder does not hold scans in a layout that is understood."""


@dataclasses.dataclass(frozen=True, order=True)
class ScanFile:
  """A scan of a collection.

  Attributes:
    scan_id: SeriesInstanceUID in LUNA16, else the file name without suffix.
    path: what `reader.read_scan` takes.
    split: `schema.TRAIN`, `schema.VALIDATION` or `schema.HELD_OUT`.
    subset: LUNA16's subset, 0 to 9, which is also the fold; else None.
  """

  scan_id: str
  path: str
  split: str
  subset: int | None = None


@dataclasses.dataclass(frozen=True)
class Annotation:
  """A nodule: centre in world mm (LPS) and diameter in mm."""

  scan_id: str
  centre: tuple[float, float, float]
  diameter: float


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A nodule candidate: centre in world mm (LPS), 1 if it is a nodule."""

  scan_id: str
  centre: tuple[float, float, float]
  label: int


def find_scans(folder: str) -> list[ScanFile]:
  """Finds all scans of a folder, sorted by scan id.

  A scan is listed whether it can be read or not: every file with the suffix of
  a scan, and every folder, which is taken for a DICOM series.

  Args:
    folder: a local folder, or an address such as s3://bucket/LUNA16.

  Raises:
    StorageError: an address cannot be read.
    LayoutError: no such folder, neither layout or both, no scan, the same scan
      id twice, or a name that is not UTF-8.
  """
  folder = os.fspath(folder)
  if not storage.is_folder(folder):
    raise LayoutError(f'no folder {folder}; give the folder of the scans')
  try:
    in_subsets = list(_find_in_subsets(storage.absolute(folder)))
    in_splits = list(_find_in_splits(storage.absolute(folder)))
  except OSError as error:
    raise LayoutError(f'cannot list {folder}: {error}') from error
  if in_subsets and in_splits:
    raise LayoutError(
      f'{folder} holds scans both in {in_subsets[0].path} and in'
      f' {in_splits[0].path}; keep either subset0 .. subset9 or train/ and'
      ' validation/ there'
    )
  found = sorted(in_subsets or in_splits)
  if not found:
    raise LayoutError(
      f'no scan found in {folder}; expected LUNA16 (subset0 .. subset9 with'
      ' .mhd and .raw files) or train/ and validation/ with'
      f' {", ".join(reader.SCAN_SUFFIXES)} files or DICOM folders'
    )
  _check_ids(found)
  return found


def split_of_subset(subset: int) -> str:
  """Returns the split of a LUNA16 subset: 0-4 train, 5-6 validation."""
  if subset in TRAIN_SUBSETS:
    return schema.TRAIN
  if subset in VALIDATION_SUBSETS:
    return schema.VALIDATION
  return schema.HELD_OUT


def read_annotations(folder: str) -> list[Annotation]:
  """Reads annotations.csv.

  Raises:
    LayoutError: the file is missing or a row is broken.
  """

  def parse(row):
    diameter = _number(row, 'diameter_mm')
    if diameter <= 0:
      raise ValueError(f'diameter_mm is {diameter:g}, wanted more than 0')
    return Annotation(_scan_id(row), _centre(row), diameter)

  return list(_read_rows(folder, ANNOTATIONS_FILE, parse))


def read_candidates(folder: str) -> list[Candidate]:
  """Reads candidates_V2.csv.

  Raises:
    LayoutError: the file is missing or a row is broken.
  """

  def parse(row):
    label = {'0': 0, '1': 1}.get(row['class'].strip())
    if label is None:
      raise ValueError(f'class is {row["class"]}, wanted 0 or 1')
    return Candidate(_scan_id(row), _centre(row), label)

  return list(_read_rows(folder, CANDIDATES_FILE, parse))


def lung_mask_path(folder: str, scan_id: str) -> str | None:
  """Returns the lung mask of a scan, or None where there is none."""
  path = os.path.join(folder, LUNG_MASK_FOLDER, f'{scan_id}.mhd')
  return path if storage.is_file(path) else None


def _find_in_subsets(folder: str) -> Iterator[ScanFile]:
  for name, holds_files in storage.list_folder(folder):
    matched = _SUBSET.fullmatch(name)
    if not matched or not holds_files:
      continue
    subset = int(matched.group(1))
    for scan_id, path in _find_in_folder(os.path.join(folder, name)):
      # Some unpacking tools leave subset0/subset0.
      nested = scan_id == name and storage.is_folder(path)
      for one in _find_in_folder(path) if nested else [(scan_id, path)]:
        yield ScanFile(*one, split_of_subset(subset), subset)


def _find_in_splits(folder: str) -> Iterator[ScanFile]:
  for split in (schema.TRAIN, schema.VALIDATION):
    split_folder = os.path.join(folder, split)
    if storage.is_folder(split_folder):
      for scan_id, path in _find_in_folder(split_folder):
        yield ScanFile(scan_id, path, split)


def _find_in_folder(folder: str) -> Iterator[tuple[str, str]]:
  """Gives (scan id, path) of the scans right in a folder."""
  entries = storage.list_folder(folder)
  loose = [
    name
    for name, is_folder in entries
    if re.fullmatch(r'[^.].*\.dcm', name, re.IGNORECASE) and not is_folder
  ]
  if loose:
    logging.warning(
      '%d DICOM files right in %s are passed over, the first is %s: give each'
      ' series a folder of its own there',
      len(loose),
      folder,
      loose[0],
    )
  for name, is_folder in entries:
    path = os.path.join(folder, name)
    if name.startswith('.'):
      continue
    if is_folder:
      yield name, path
      continue
    for suffix in reader.SCAN_SUFFIXES:
      # What the reader does not know as .NII.GZ it rejects, which is told.
      if name.lower().endswith(suffix):
        yield name[: -len(suffix)], path


def _check_ids(found: list[ScanFile]) -> None:
  """Raises LayoutError for an id that is not UTF-8, or occurs twice."""
  for one in found:
    if not _is_utf8(one.scan_id):
      raise LayoutError(f'{one.path!r} is not named in UTF-8; rename it')
  for one, other in itertools.pairwise(found):
    if one.scan_id == other.scan_id:
      raise LayoutError(
        f'scan id {one.scan_id} occurs twice: {one.path} and {other.path};'
        ' rename or remove one'
      )


def _is_utf8(text: str) -> bool:
  try:
    text.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True


def _read_rows(folder: str, name: str, parse: Callable) -> Iterator:
  """Gives what `parse` makes of each row of a csv file."""
  path = os.path.join(folder, name)
  if not storage.is_file(path):
    raise LayoutError(f'no {name} in {folder}; it comes with LUNA16')
  with storage.open_text(path) as file:
    rows = csv.DictReader(file)
    try:
      if 'seriesuid' not in (rows.fieldnames or ()):
        raise KeyError('seriesuid')
      for row in rows:
        yield parse(row)
    except (
      AttributeError,
      KeyError,
      TypeError,
      ValueError,
      csv.Error,
    ) as error:
      raise LayoutError(
        f'{path} line {rows.line_num} is not a row of {name}: {error!r};'
        ' download it again'
      ) from error


def _scan_id(row) -> str:
  if not row['seriesuid']:
    raise ValueError('no seriesuid')
  return row['seriesuid']


def _centre(row) -> tuple[float, float, float]:
  return tuple(_number(row, key) for key in ('coordX', 'coordY', 'coordZ'))


def _number(row, key: str) -> float:
  number = float(row[key])
  if not math.isfinite(number):
    raise ValueError(f'{key} = {row[key]}')
  return number
