"""Vocabularies as the text logs of the published script.

A log has no header and one row per cube, `path#x,y,z,size,depth#label`: the
scan, the lower corner of the box (already shifted) and its side in plane and
number of slices, in voxels, and the word. Words ascend, and the patients of a
word are in the order of their rank.

  train_data{1,2,3}_vwGen_exRef.txt    training, resolutions 0, 1 and 2
  val_data1_vwGen_exRef.txt            validation

The published script knows no orientation, so places are in the voxel order of
the file, while ours are in LPS: scans with a flipped header are mapped.

What a log does not say: distances are NaN, and of the settings only the numbers
of words and patients are those that it was made with.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import os
import re

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import image_file
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage

_FILES = {
  (schema.TRAIN, 0): 'train_data1_vwGen_exRef.txt',
  (schema.TRAIN, 1): 'train_data2_vwGen_exRef.txt',
  (schema.TRAIN, 2): 'train_data3_vwGen_exRef.txt',
  (schema.VALIDATION, 0): 'val_data1_vwGen_exRef.txt',
}
_ROW = re.compile(
  r'(?P<path>.+)#\s*(?P<box>\d{1,9}(?:\s*,\s*\d{1,9}){4})\s*#'
  r'\s*(?P<label>\d{1,9})(?:\.0)?'
)
_FORM = 'path#x,y,z,size,depth#label'


@dataclasses.dataclass(frozen=True)
class _Row:
  """A row: where it stands, for messages, and what it says, in LPS."""

  at: str
  scan_id: str
  word: int
  origin: tuple[int, int, int]
  size: tuple[int, int, int]


def read_logs(
  folder: str, scan_files: Mapping[str, luna16.ScanFile]
) -> vocabulary.Vocabulary:
  """Reads the logs of a folder; only train_data1 must be there.

  Args:
    folder: holds files with the names above.
    scan_files: the scans that the logs speak of, by scan id, which is the name
      of the file without folder and suffix. Only headers are read.

  Raises:
    UserError: a row is wrong; the message names the file and the line.
    reader.ScanError: the header of a scan cannot be read.
  """
  find_axes = functools.cache(_StoredAxes.of_scan)
  rows = {
    key: list(_read_rows(os.path.join(folder, name), scan_files, find_axes))
    for key, name in _FILES.items()
    if os.path.exists(os.path.join(folder, name))
  }
  first = (schema.TRAIN, 0)
  if not rows.get(first):
    raise errors.UserError(
      f'no rows of {_FILES[first]} in {folder}; give the folder of the text'
      ' logs that the published script writes'
    )
  by_rank = {key: _rank(found) for key, found in rows.items()}
  for key, found in by_rank.items():
    _check_same_patients(by_rank[key[0], 0], found)
  words = _make_words(folder, by_rank[first])
  _check_words(words, by_rank)
  _check_patients(rows)
  instances = sorted(
    vocabulary.Instance(
      split=split,
      word=word,
      rank=rank,
      resolution=resolution,
      scan_id=row.scan_id,
      origin=row.origin,
      size=row.size,
      distance=float('nan'),
    )
    for (split, resolution), found in by_rank.items()
    for (word, rank), row in found.items()
  )
  return vocabulary.Vocabulary(
    settings=vocabulary.Settings(
      words=len(words),
      instances=_most_patients(by_rank[first]),
      validation_instances=_most_patients(
        by_rank.get((schema.VALIDATION, 0), {})
      ),
    ),
    words=words,
    instances=tuple(instances),
    notes=tuple(_notes(rows, scan_files)),
  )


def write_logs(
  folder: str,
  words: vocabulary.Vocabulary,
  scan_files: Mapping[str, luna16.ScanFile],
) -> list[str]:
  """Writes the logs of a vocabulary to a folder and returns their names.

  Args:
    folder: an existing folder.
    words: of `--frame voxel`; the boxes of others are no squares in plane.
    scan_files: the scans, by scan id; their paths go into the rows.

  Raises:
    UserError: a scan is missing, or a row cannot say what a box is.
    reader.ScanError: the header of a scan cannot be read.
  """
  find_axes = functools.cache(_StoredAxes.of_scan)
  lines: dict[str, list[str]] = {}
  for one in sorted(words.instances):
    name = _FILES[one.split, one.resolution]
    scan_file = scan_files.get(one.scan_id)
    if scan_file is None:
      raise errors.UserError(
        f'the vocabulary needs scan {one.scan_id}, which is not among the'
        f' {len(scan_files)} scans given; use the scans it was made from'
      )
    axes = find_axes(scan_file.path)
    (x, y, z), (side, other, depth) = axes.to_stored(one.origin, one.size)
    if side != other or depth != schema.CUBE_SHAPE[2]:
      raise errors.UserError(
        f'word {one.word} in scan {one.scan_id} is a box of {one.size} voxels,'
        f' which the rows {_FORM} cannot say; only vocabularies of --frame'
        ' voxel can be written'
      )
    row = f'{scan_file.path}#{x},{y},{z},{side},{depth}#{one.word}'
    lines.setdefault(name, []).append(f'{row}\n')
  for name, of_file in lines.items():
    with (
      output_file.replacing(os.path.join(folder, name)) as partial,
      open(partial, 'w', encoding='utf-8') as file,
    ):
      file.writelines(of_file)
  return sorted(lines)


@dataclasses.dataclass(frozen=True)
class _StoredAxes:
  """How the voxel order of a file maps to LPS.

  Attributes:
    size: voxels of the scan in LPS.
    reorientation: from the file to LPS.
  """

  size: tuple[int, int, int]
  reorientation: geometry_lib.Reorientation

  @classmethod
  def of_scan(cls, path: str) -> '_StoredAxes':
    with storage.staged(path) as local:
      geometry = stored = reader.read_geometry(local)
      # NumPy files have no orientation, and a DICOM series is sorted on
      # reading.
      if path.endswith(image_file.SUFFIXES):
        stored = image_file.ImageFile(local).geometry
    reorientation = geometry_lib.nearest_lps(stored)
    if reorientation.axes[2] != 2:
      raise errors.UserError(
        f'{path} is not stored slice by slice along the body, as the published'
        ' script expects; cubes of such scans have other sides'
      )
    return cls(geometry.size, reorientation)

  def to_lps(self, origin, size):
    """Maps a box of the file; returns origin and size, [x, y, z]."""
    axes = self.reorientation.axes
    size = tuple(size[axis] for axis in axes)
    return self._flip(tuple(origin[axis] for axis in axes), size), size

  def to_stored(self, origin, size):
    """Maps a box in LPS; returns origin and size in the file."""
    origin = self._flip(origin, size)
    axes = self.reorientation.axes
    order = [axes.index(axis) for axis in range(3)]
    return tuple(origin[i] for i in order), tuple(size[i] for i in order)

  def _flip(self, origin, size):
    """Measures the corner from the other end of each flipped axis of LPS."""
    return tuple(
      side - corner - length if flip else corner
      for side, corner, length, flip in zip(
        self.size, origin, size, self.reorientation.flips, strict=True
      )
    )


def _read_rows(path, scan_files, find_axes) -> Iterator[_Row]:
  try:
    with open(path, encoding='utf-8') as file:
      lines = file.read().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f'{path} cannot be read as text: {error}; get the log again'
    ) from error
  for number, line in enumerate(lines, 1):
    at = f'{path} line {number}'
    matched = _ROW.fullmatch(line.strip())
    if not matched:
      raise errors.UserError(f'{at} is {line[:80]!r}; {_FORM} is expected')
    scan_id = _scan_id(matched['path'])
    if scan_id not in scan_files:
      raise errors.UserError(
        f'{at} names scan {scan_id}, which is not among the {len(scan_files)}'
        ' scans given; use the scans that the log was made from'
      )
    x, y, z, side, depth = map(int, matched['box'].split(','))
    if depth != schema.CUBE_SHAPE[2] or not side:
      raise errors.UserError(
        f'{at} has a box of side {side} and {depth} slices; a side of 1 or'
        f' more and {schema.CUBE_SHAPE[2]} slices are expected'
      )
    axes = find_axes(scan_files[scan_id].path)
    origin, size = axes.to_lps((x, y, z), (side, side, depth))
    for corner, length, sides in zip(origin, size, axes.size, strict=True):
      if corner < 0 or corner + length > sides:
        raise errors.UserError(
          f'{at} has a box that does not lie inside its scan of'
          f' {" x ".join(map(str, axes.size))} voxels; use the scans that the'
          ' log was made from'
        )
    yield _Row(at, scan_id, int(matched['label']), origin, size)


def _scan_id(path: str) -> str:
  """Returns the name of a file; logs may come from another system."""
  name = re.split(r'[/\\]', path.rstrip('/\\'))[-1]
  for suffix in reader.SCAN_SUFFIXES:
    if name.endswith(suffix):
      return name.removesuffix(suffix)
  return name


def _rank(rows) -> dict[tuple[int, int], _Row]:
  """Returns the rows of a log by (word, rank)."""
  ranks: dict[int, int] = {}
  seen: dict[tuple[int, str], _Row] = {}
  found = {}
  for row in rows:
    other = seen.setdefault((row.word, row.scan_id), row)
    if other is not row:
      raise errors.UserError(
        f'{row.at} has scan {row.scan_id} in word {row.word} again, after'
        f' {other.at}; each patient shows a word once: remove one row'
      )
    rank = ranks.get(row.word, 0)
    ranks[row.word] = rank + 1
    found[row.word, rank] = row
  return found


def _check_same_patients(first, other) -> None:
  """Raises unless both logs have the same patients of the same words."""
  for key in sorted(first.keys() | other.keys()):
    one, two = first.get(key), other.get(key)
    if one and two and one.scan_id == two.scan_id:
      continue
    word, rank = key
    at = (two or one).at
    have = two.scan_id if two else 'no row'
    want = one.scan_id if one else 'no row'
    raise errors.UserError(
      f'{at}: patient {rank} of word {word} is {want} in resolution 0 and'
      f' {have} in another; the logs of all resolutions must have the same rows'
    )


def _make_words(folder, first) -> tuple[vocabulary.Word, ...]:
  """Returns the words: the nearest patient of each is its reference."""
  references = {word: row for (word, rank), row in first.items() if rank == 0}
  for number in range(len(references)):
    if number not in references:
      raise errors.UserError(
        f'{os.path.join(folder, _FILES[schema.TRAIN, 0])} has no rows of word'
        f' {number}, but of later ones; words 0, 1, ... are expected'
      )
  return tuple(
    vocabulary.Word(word, references[word].scan_id, references[word].origin)
    for word in sorted(references)
  )


def _check_words(words, by_rank) -> None:
  for found in by_rank.values():
    for (word, _), row in found.items():
      if word >= len(words):
        raise errors.UserError(
          f'{row.at} is of word {word}, of which there is no training row'
        )


def _check_patients(rows) -> None:
  """Raises when a patient is in both splits."""
  train = {row.scan_id: row for row in rows[schema.TRAIN, 0]}
  for row in rows.get((schema.VALIDATION, 0), ()):
    if row.scan_id in train:
      raise errors.UserError(
        f'{row.at} has scan {row.scan_id}, and so has'
        f' {train[row.scan_id].at}; a patient belongs to one split'
      )


def _most_patients(by_rank) -> int:
  return max((rank + 1 for _, rank in by_rank), default=0)


def _notes(rows, scan_files) -> Iterator[str]:
  yield (
    'read from text logs, which do not say distances (NaN) nor settings beyond'
    ' the numbers of words and patients (defaults)'
  )
  for key, name in _FILES.items():
    if key not in rows:
      yield f'no {name}: no cubes of {key[0]}, resolution {key[1]}'
  others = {
    row.scan_id
    for (split, _), found in rows.items()
    for row in found
    if scan_files[row.scan_id].split != split
  }
  if others:
    yield (
      f'{len(others)} scans are of another split in the folder of the scans,'
      f' such as {min(others)}; that of the logs is taken'
    )
