"""The vocabulary: which words there are, which cubes show them, and its files.

A word is a place in a reference scan. Its instances are the same place in the K
most similar patients, in up to three resolutions each.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import os

import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.discovery import neighbours
from transvw_tf2.discovery import settings as settings_lib

# Part of every vocabulary, so known by this name too.
Settings = settings_lib.Settings

VOCABULARY_FILE = 'vocabulary.json'
INSTANCES_FILE = 'instances.csv'
REJECTED_FILE = 'rejected.csv'
DESCRIPTORS_FILE = 'descriptors.npz'

# Of voxels; data sets hold int32.
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Word:
  """A visual word: a place (voxels [x, y, z]) in a reference scan."""

  word: int
  scan_id: str
  place: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, order=True)
class Instance:
  """One cube of a word.

  Attributes:
    split: `schema.TRAIN` or `schema.VALIDATION`.
    word: number of the word.
    rank: 0 for the nearest patient.
    resolution: one of `schema.RESOLUTIONS`.
    scan_id: the scan that the cube is cut from.
    origin: lower corner of the box, voxels [x, y, z].
    size: sides of the box, voxels [x, y, z].
    distance: L2 distance of the descriptors of this scan and the reference.
  """

  split: str
  word: int
  rank: int
  resolution: int
  scan_id: str
  origin: tuple[int, int, int]
  size: tuple[int, int, int]
  distance: float


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Words and their instances, sorted; `notes` say what was cut short."""

  settings: Settings
  words: tuple[Word, ...]
  instances: tuple[Instance, ...]
  notes: tuple[str, ...] = ()


_COLUMNS = [
  'split',
  'word',
  'rank',
  'resolution',
  'scan_id',
  'x',
  'y',
  'z',
  'size_x',
  'size_y',
  'size_z',
  'distance',
]


def write_vocabulary(folder: str, vocabulary: Vocabulary) -> None:
  """Writes vocabulary.json and instances.csv."""
  contents = {
    'words': [dataclasses.asdict(word) for word in vocabulary.words],
    'settings': dataclasses.asdict(vocabulary.settings),
    'notes': list(vocabulary.notes),
    'versions': {
      package: importlib.metadata.version(package)
      for package in ('numpy', 'scikit-learn', 'scipy', 'SimpleITK')
    },
  }
  with _replacing(folder, INSTANCES_FILE) as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(_COLUMNS)
    for one in vocabulary.instances:
      writer.writerow(
        [
          *(one.split, one.word, one.rank, one.resolution, one.scan_id),
          *one.origin,
          *one.size,
          f'{one.distance:.{neighbours.DISTANCE_DIGITS}f}',
        ]
      )
  # Last, so that a folder with a vocabulary.json is complete.
  with _replacing(folder, VOCABULARY_FILE) as file:
    json.dump(contents, file, indent=1)
    file.write('\n')


def read_vocabulary(folder: str) -> Vocabulary:
  """Reads what `write_vocabulary` wrote.

  Raises:
    UserError: a file is missing or is not what was expected.
  """
  path = os.path.join(folder, VOCABULARY_FILE)
  try:
    with open(path, encoding='utf-8') as file:
      contents = json.load(file)
    words = tuple(
      Word(int(one['word']), str(one['scan_id']), _place(one['place']))
      for one in contents['words']
    )
    settings = Settings(**contents['settings'])
    notes = tuple(str(note) for note in contents['notes'])
    path = os.path.join(folder, INSTANCES_FILE)
    with open(path, newline='', encoding='utf-8') as file:
      instances = tuple(_read_instance(row) for row in csv.DictReader(file))
  except FileNotFoundError as error:
    raise errors.UserError(
      f'no vocabulary in {folder}: {os.path.basename(path)} is missing; give'
      ' the --output folder of beam_jobs.discover_words'
    ) from error
  except (
    *(KeyError, TypeError, ValueError, OverflowError, RecursionError),
    *(OSError, csv.Error, errors.UserError),
  ) as error:
    raise errors.UserError(
      f'{path} is not a vocabulary file of this version: {error!r}; make it'
      ' anew with beam_jobs.discover_words'
    ) from error
  _check_words(folder, words, instances)
  return Vocabulary(settings, words, instances, notes)


def _place(values) -> tuple[int, int, int]:
  x, y, z = map(_integer, values)
  return x, y, z


def _integer(value) -> int:
  number = int(value)
  if abs(number) > _MOST:
    raise ValueError(f'{number} is no number of voxels')
  return number


def _check_words(folder, words, instances):
  """Raises UserError unless words are 0, 1, ... and each has its cubes."""
  numbers = [one.word for one in words]
  if numbers != list(range(len(words))):
    raise errors.UserError(
      f'{folder} has words {numbers} in {VOCABULARY_FILE}; 0, 1, ... in order'
      ' are wanted: make it anew with beam_jobs.discover_words'
    )
  split_of = {}
  for one in instances:
    if split_of.setdefault(one.scan_id, one.split) != one.split:
      raise errors.UserError(
        f'{folder} has scan {one.scan_id} in two splits in {INSTANCES_FILE}; a'
        ' patient belongs to one: make it anew with beam_jobs.discover_words'
      )
  differing = {one.word for one in instances} ^ set(numbers)
  if differing:
    raise errors.UserError(
      f'{folder} has words {sorted(differing)} in only one of'
      f' {VOCABULARY_FILE} and {INSTANCES_FILE}; make both anew with'
      ' beam_jobs.discover_words'
    )


def _read_instance(row: Mapping[str, str]) -> Instance:
  if row['split'] not in (schema.TRAIN, schema.VALIDATION):
    raise ValueError(f'split {row["split"]}')
  return Instance(
    split=row['split'],
    word=int(row['word']),
    rank=int(row['rank']),
    resolution=int(row['resolution']),
    scan_id=row['scan_id'],
    origin=_place([row['x'], row['y'], row['z']]),
    size=_place([row['size_x'], row['size_y'], row['size_z']]),
    distance=float(row['distance']),
  )


def write_rejected(folder: str, rejected: Sequence[tuple[str, str, str]]):
  """Writes rejected.csv from (scan, reason, detail) rows, sorted."""
  with _replacing(folder, REJECTED_FILE) as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(('scan', 'reason', 'detail'))
    writer.writerows(sorted(rejected))


def write_descriptors(
  folder: str, scan_ids: Sequence[str], descriptors: np.ndarray
) -> None:
  """Writes descriptors.npz: scan_id (N,), descriptors float32 (N, D)."""
  with _replacing(folder, DESCRIPTORS_FILE, 'wb') as file:
    np.savez(
      file,
      scan_id=np.asarray(scan_ids),
      descriptors=np.asarray(descriptors, np.float32),
    )


@contextlib.contextmanager
def _replacing(folder: str, name: str, mode: str = 'w'):
  """Opens a file that takes its name only once it is written."""
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''}
  with (
    output_file.replacing(os.path.join(folder, name)) as partial,
    open(partial, mode, **text) as file,
  ):
    yield file
