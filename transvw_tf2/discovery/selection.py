"""Chooses the words, and finds the patients and boxes that show them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import neighbours
from transvw_tf2.discovery import places
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import lung_box

# Streams of random numbers; the first integer after the seed.
_REFERENCE_STREAM = 1
_BOX_STREAM = 2


@dataclasses.dataclass(frozen=True)
class ScanRow:
  """What the vocabulary needs of a scan; see `summary.ScanSummary`.

  Spacing and lungs are needed in the frame of the lungs alone.
  """

  scan_id: str
  split: str
  size: tuple[int, int, int]
  candidates: np.ndarray
  spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
  lungs: lung_box.LungBox | None = None


def choose_words(
  scans: Sequence[ScanRow], settings: settings_lib.Settings
) -> tuple[vocabulary.Word, ...]:
  """Chooses reference scans and places, each reference at most once.

  The references are taken in an order that the seed decides. Of each, the
  first candidate far enough from all earlier words becomes a word. So more
  words wanted leave those before them as they are.

  Args:
    scans: training scans with their candidates; the order does not matter.
    settings: see `settings.Settings`.
  """
  references = sorted(scans, key=lambda scan: scan.scan_id)
  rng = np.random.default_rng([settings.seed, _REFERENCE_STREAM])
  chosen: list[vocabulary.Word] = []
  for index in rng.permutation(len(references)):
    if len(chosen) == settings.words:
      break
    scan = references[index]
    if not _has_frame(scan, settings):
      continue
    taken = np.asarray([word.place for word in chosen]).reshape(-1, 3)
    for place in scan.candidates:
      distances = np.linalg.norm(taken - place, axis=1)
      if np.all(distances >= settings.min_distance):
        corner = tuple(int(side) for side in place)
        chosen.append(vocabulary.Word(len(chosen), scan.scan_id, corner))
        break
  return tuple(chosen)


def find_instances(
  word: vocabulary.Word,
  reference: ScanRow,
  scans: Sequence[ScanRow],
  descriptors: np.ndarray,
  descriptor: np.ndarray,
  settings: settings_lib.Settings,
) -> tuple[list[vocabulary.Instance], int]:
  """Finds the patients that show a word and draws their cubes.

  Patients whose scan does not hold the cube are passed over for the next.

  Args:
    word: the word.
    reference: its reference scan.
    scans: scans of one split, sorted by scan id.
    descriptors: float32 (len(scans), D), in the same order.
    descriptor: float32 (D,), of the reference scan.
    settings: see `settings.Settings`.

  Returns:
    The cubes, and how many patients were passed over for the next.
  """
  if not scans:
    return [], 0
  train = scans[0].split == schema.TRAIN
  wanted = settings.instances if train else settings.validation_instances
  resolutions = (
    schema.TRAIN_RESOLUTIONS if train else schema.VALIDATION_RESOLUTIONS
  )
  order, distances = neighbours.rank(descriptor, descriptors)
  ranked = [
    (scans[row], float(distance))
    for row, distance in zip(order, distances, strict=True)
  ]
  # The reference is its own nearest, so one of the K even where K is 1 and
  # another scan is the same.
  ranked.sort(key=lambda one: (one[1], one[0].scan_id != word.scan_id))
  found: list[vocabulary.Instance] = []
  rank, passed_over = 0, 0
  for scan, distance in ranked:
    if rank == wanted:
      break
    carried = _carry(word, reference, scan, settings.frame)
    if carried is None:
      passed_over += 1
      continue
    for resolution in resolutions:
      origin, size = places.draw_box(
        carried.corner,
        resolution,
        scan.size,
        _box_rng(word, scan, resolution, settings.seed),
        carried.scale,
      )
      found.append(
        vocabulary.Instance(
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
    rank += 1
  return found, passed_over


def _has_frame(scan: ScanRow, settings: settings_lib.Settings) -> bool:
  return settings.frame == frames.VOXEL or scan.lungs is not None


def _carry(word, reference, scan, frame) -> frames.Carried | None:
  """Carries a word to a scan; None where the scan does not hold its cube."""
  if frame == frames.VOXEL:
    carried = frames.Carried(np.asarray(word.place, float), np.ones(3))
  elif scan.lungs is None:
    return None
  else:
    carried = frames.carry(
      np.add(word.place, np.divide(schema.CUBE_SHAPE, 2)),
      schema.CUBE_SHAPE,
      reference.lungs,
      reference.spacing,
      scan.lungs,
      scan.spacing,
    )
  if carried is None or not places.cube_fits(
    carried.corner, scan.size, carried.scale
  ):
    return None
  return carried


def _box_rng(word, scan, resolution: int, seed: int) -> np.random.Generator:
  """Depends on the word, scan, resolution and seed alone."""
  return np.random.default_rng(
    [
      seed,
      _BOX_STREAM,
      schema.stable_hash(scan.scan_id),
      word.word,
      resolution,
    ]
  )


def build_vocabulary(
  scans: Sequence[ScanRow],
  descriptors: Mapping[str, np.ndarray],
  settings: settings_lib.Settings,
) -> vocabulary.Vocabulary:
  """Builds the vocabulary from what pass 1 found.

  Args:
    scans: all usable scans of both splits; the order does not matter.
    descriptors: float32 (D,) by scan id.
    settings: see `settings.Settings`.

  Raises:
    UserError: no word can be found.
  """
  by_split = {}
  for split in (schema.TRAIN, schema.VALIDATION):
    rows = [scan for scan in scans if scan.split == split]
    by_split[split] = sorted(rows, key=lambda scan: scan.scan_id)
  words = choose_words(by_split[schema.TRAIN], settings)
  if not words:
    raise errors.UserError(_no_words(by_split[schema.TRAIN], settings))
  matrices = {
    split: np.asarray([descriptors[scan.scan_id] for scan in rows])
    for split, rows in by_split.items()
  }
  references = {scan.scan_id: scan for scan in by_split[schema.TRAIN]}
  instances: list[vocabulary.Instance] = []
  passed_over = 0
  for word in words:
    for split, rows in by_split.items():
      found, count = find_instances(
        word,
        references[word.scan_id],
        rows,
        matrices[split],
        descriptors[word.scan_id],
        settings,
      )
      instances += found
      passed_over += count
  notes = [
    *_shortage_notes(words, instances, by_split, settings),
    *_frame_notes(passed_over, scans, settings),
  ]
  return vocabulary.Vocabulary(
    settings=settings,
    words=words,
    instances=tuple(sorted(instances)),
    notes=tuple(notes),
  )


def _no_words(references, settings) -> str:
  """Returns why no word was found."""
  text = f'no visual word found in {len(references)} training scans: '
  if references and not any(_has_frame(one, settings) for one in references):
    return text + 'no lungs were found in any of them; use --frame voxel'
  return (
    f'{text}no place within the borders passed the soft-tissue filter; use'
    ' larger scans, smaller --xy_border and --z_border, or a larger'
    ' --max_soft_tissue'
  )


def _shortage_notes(words, instances, by_split, settings):
  """Yields one line for each wish that the scans could not meet."""
  if len(words) < settings.words:
    references = by_split[schema.TRAIN]
    usable = sum(
      len(scan.candidates) > 0 and _has_frame(scan, settings)
      for scan in references
    )
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


def _frame_notes(passed_over: int, scans, settings):
  """Yields one line for each reason to pass over patients."""
  without = sum(not _has_frame(scan, settings) for scan in scans)
  if without:
    yield (
      f'{without} of {len(scans)} scans are passed over: no lungs were found'
      ' in them, or they are cut at both ends'
    )
  if passed_over:
    yield (
      f'{passed_over} times a patient was passed over for the next: the scan'
      ' does not hold the cube of the word'
    )
