"""The vocabulary: which words there are and which cubes show them.

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
from transvw_tf2 import schema
from transvw_tf2.discovery import neighbours
from transvw_tf2.discovery import places
from transvw_tf2.discovery import settings as settings_lib

# Part of every vocabulary, so known by this name too.
Settings = settings_lib.Settings

VOCABULARY_FILE = 'vocabulary.json'
INSTANCES_FILE = 'instances.csv'
REJECTED_FILE = 'rejected.csv'
DESCRIPTORS_FILE = 'descriptors.npz'

# Streams of random numbers; the first integer after the seed.
_REFERENCE_STREAM = 1
_BOX_STREAM = 2


@dataclasses.dataclass(frozen=True)
class ScanRow:
  """What the vocabulary needs of a scan; see `summary.ScanSummary`."""

  scan_id: str
  split: str
  size: tuple[int, int, int]
  candidates: np.ndarray


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


def choose_words(
  scans: Sequence[ScanRow], settings: Settings
) -> tuple[Word, ...]:
  """Chooses reference scans and places, each reference at most once.

  The references are taken in an order that the seed decides. Of each, the
  first candidate far enough from all earlier words becomes a word.

  Args:
    scans: training scans with their candidates; the order does not matter.
    settings: see `Settings`.
  """
  references = sorted(scans, key=lambda scan: scan.scan_id)
  rng = np.random.default_rng([settings.seed, _REFERENCE_STREAM])
  chosen: list[Word] = []
  for index in rng.permutation(len(references)):
    if len(chosen) == settings.words:
      break
    scan = references[index]
    taken = np.asarray([word.place for word in chosen]).reshape(-1, 3)
    for place in scan.candidates:
      distances = np.linalg.norm(taken - place, axis=1)
      if np.all(distances >= settings.min_distance):
        corner = tuple(int(side) for side in place)
        chosen.append(Word(len(chosen), scan.scan_id, corner))
        break
  return tuple(chosen)


def find_instances(
  word: Word,
  scans: Sequence[ScanRow],
  descriptors: np.ndarray,
  reference: np.ndarray,
  settings: Settings,
) -> list[Instance]:
  """Finds the patients that show a word and draws their cubes.

  Patients whose scan is too small for the cube are passed over for the next.

  Args:
    word: the word.
    scans: scans of one split, sorted by scan id.
    descriptors: float32 (len(scans), D), in the same order.
    reference: float32 (D,), descriptor of the word's reference scan.
    settings: see `Settings`.
  """
  if not scans:
    return []
  train = scans[0].split == schema.TRAIN
  wanted = settings.instances if train else settings.validation_instances
  resolutions = (
    schema.TRAIN_RESOLUTIONS if train else schema.VALIDATION_RESOLUTIONS
  )
  found: list[Instance] = []
  order, distances = neighbours.rank(reference, descriptors)
  ranked = [
    (scans[row], float(distance))
    for row, distance in zip(order, distances, strict=True)
    if places.cube_fits(word.place, scans[row].size)
  ]
  # The reference is its own nearest, so one of the K even where K is 1 and
  # another scan is the same.
  ranked.sort(key=lambda one: (one[1], one[0].scan_id != word.scan_id))
  for rank, (scan, distance) in enumerate(ranked[:wanted]):
    for resolution in resolutions:
      origin, size = _draw_box(word, scan, resolution, settings.seed)
      found.append(
        Instance(
          split=scan.split,
          word=word.word,
          rank=rank,
          resolution=resolution,
          scan_id=scan.scan_id,
          origin=origin,
          size=size,
          distance=distance,
        )
      )
  return found


def _draw_box(word: Word, scan: ScanRow, resolution: int, seed: int):
  """Draws a box that depends on its word, scan, resolution and seed alone."""
  rng = np.random.default_rng(
    [
      seed,
      _BOX_STREAM,
      schema.stable_hash(scan.scan_id),
      word.word,
      resolution,
    ]
  )
  return places.draw_box(word.place, resolution, scan.size, rng)


def build_vocabulary(
  scans: Sequence[ScanRow],
  descriptors: Mapping[str, np.ndarray],
  settings: Settings,
) -> Vocabulary:
  """Builds the vocabulary from what pass 1 found.

  Args:
    scans: all usable scans of both splits; the order does not matter.
    descriptors: float32 (D,) by scan id.
    settings: see `Settings`.

  Raises:
    UserError: no word can be found.
  """
  by_split = {}
  for split in (schema.TRAIN, schema.VALIDATION):
    rows = [scan for scan in scans if scan.split == split]
    by_split[split] = sorted(rows, key=lambda scan: scan.scan_id)
  words = choose_words(by_split[schema.TRAIN], settings)
  if not words:
    raise errors.UserError(
      f'no visual word found in {len(by_split[schema.TRAIN])} training scans:'
      ' no place within the borders passed the soft-tissue filter; use larger'
      ' scans, smaller --xy_border and --z_border, or a larger'
      ' --max_soft_tissue'
    )
  matrices = {
    split: np.asarray([descriptors[scan.scan_id] for scan in rows])
    for split, rows in by_split.items()
  }
  instances: list[Instance] = []
  for word in words:
    for split, rows in by_split.items():
      instances += find_instances(
        word, rows, matrices[split], descriptors[word.scan_id], settings
      )
  return Vocabulary(
    settings=settings,
    words=words,
    instances=tuple(sorted(instances)),
    notes=tuple(_shortage_notes(words, instances, by_split, settings)),
  )


def _shortage_notes(words, instances, by_split, settings):
  """Yields one line for each wish that the scans could not meet."""
  if len(words) < settings.words:
    references = by_split[schema.TRAIN]
    usable = sum(len(scan.candidates) > 0 for scan in references)
    yield (
      f'{len(words)} words found of {settings.words} wanted: each word takes a'
      f' training scan of its own, and {usable} of {len(references)} have a'
      ' place that passed the soft-tissue filter'
    )
  for split, wanted in (
    (schema.TRAIN, settings.instances),
    (schema.VALIDATION, settings.validation_instances),
  ):
    per_word = {word.word: 0 for word in words}
    for instance in instances:
      if instance.split == split and instance.resolution == 0:
        per_word[instance.word] += 1
    fewest = min(per_word.values())
    if fewest < wanted:
      yield (
        f'{fewest} to {max(per_word.values())} {split} patients per word of'
        f' {wanted} wanted: there are {len(by_split[split])} {split} scans,'
        ' and those too small for a cube are passed over'
      )


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
      Word(int(one['word']), str(one['scan_id']), tuple(map(int, one['place'])))
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
    *(KeyError, TypeError, ValueError),
    *(OSError, csv.Error, errors.UserError),
  ) as error:
    raise errors.UserError(
      f'{path} is not a vocabulary file of this version: {error!r}; make it'
      ' anew with beam_jobs.discover_words'
    ) from error
  _check_words(folder, words, instances)
  return Vocabulary(settings, words, instances, notes)


def _check_words(folder, words, instances):
  """Raises UserError unless words are 0, 1, ... and each has its cubes."""
  numbers = [one.word for one in words]
  if numbers != list(range(len(words))):
    raise errors.UserError(
      f'{folder} has words {numbers} in {VOCABULARY_FILE}; 0, 1, ... in order'
      ' are wanted: make it anew with beam_jobs.discover_words'
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
    origin=(int(row['x']), int(row['y']), int(row['z'])),
    size=(int(row['size_x']), int(row['size_y']), int(row['size_z'])),
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
  path = os.path.join(folder, name)
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''}
  with open(path + '.tmp', mode, **text) as file:
    yield file
  os.replace(path + '.tmp', path)
