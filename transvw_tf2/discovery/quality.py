"""Measures whether the cubes of a word look alike, and unlike those of others.

Where the anatomy is known, as in synthetic patients, also how far each cube
truly lies from the place that its word stands for.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import os

import numpy as np
from sklearn import metrics
import threadpoolctl

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.discovery import vocabulary as vocabulary_lib
from transvw_tf2.scans import bend

QUALITY_FILE = 'quality.json'

# Cubes are compared by their means over 4x4x4 voxels.
_BLOCK = 4
THUMBNAIL_SHAPE = tuple(side // _BLOCK for side in schema.CUBE_SHAPE)
# Air around the patient or in the windpipe; below it, lungs count as
# emphysema.
AIR_HU = -950
# All pairs of so many cubes take some 100 MB and a second.
MOST_CUBES = 2000
_LEAST_PER_WORD = 2
_SAMPLE_STREAM = 3
_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a word, or means over words; None where there is nothing.

  Attributes:
    cubes: cubes compared.
    within: mean normalised cross-correlation with other cubes of the word.
    between: the same with cubes of other words.
    silhouette: mean silhouette, in [-1, 1], of 1 - cross-correlation.
    air: share of voxels at or below `AIR_HU`.
    error_mm: mean distance to the true place, the reference left out.
  """

  cubes: int
  within: float | None
  between: float | None
  silhouette: float | None
  air: float | None
  error_mm: float | None


@dataclasses.dataclass(frozen=True)
class Quality:
  """Quality of a vocabulary.

  Attributes:
    overall: over all words; errors over all cubes.
    words: by number of the word.
    errors_mm: true error (mm) of each cube of resolution 0 by (split, word,
      rank), that of the reference left out; empty where none is known.
  """

  overall: Scores
  words: Mapping[int, Scores]
  errors_mm: Mapping[tuple[str, int, int], float]

  def summary_lines(self) -> list[str]:
    """Returns what a user wants to know, a line each."""
    one = self.overall
    lines = [
      f'quality of {one.cubes} cubes: similarity {_text(one.within)} within and'
      f' {_text(one.between)} between words (cross-correlation), silhouette'
      f' {_text(one.silhouette)}, air {_text(one.air)}'
    ]
    if self.errors_mm:
      lines.append(
        f'true error: {one.error_mm:.1f} mm, mean of {len(self.errors_mm)}'
        ' cubes'
      )
    return lines


def choose_measured(
  instances: Sequence[vocabulary_lib.Instance], seed: int
) -> list[vocabulary_lib.Instance]:
  """Chooses the cubes to be compared: of native size, evenly over words.

  Args:
    instances: of a vocabulary.
    seed: decides which, where there are more than `MOST_CUBES`.
  """
  by_word: dict[int, list[vocabulary_lib.Instance]] = {}
  for one in sorted(instances):
    if one.resolution == 0:
      by_word.setdefault(one.word, []).append(one)
  words = sorted(by_word)
  most_words = MOST_CUBES // _LEAST_PER_WORD
  if len(words) > most_words:
    rng = np.random.default_rng([seed, _SAMPLE_STREAM])
    words = sorted(rng.choice(words, most_words, replace=False).tolist())
  chosen = []
  for word in words:
    cubes = by_word[word]
    count = min(len(cubes), max(_LEAST_PER_WORD, MOST_CUBES // len(words)))
    rng = np.random.default_rng([seed, _SAMPLE_STREAM, word])
    rows = rng.choice(len(cubes), count, replace=False)
    chosen += [cubes[row] for row in sorted(rows)]
  return chosen


def make_thumbnail(cube: np.ndarray) -> np.ndarray:
  """Returns means over blocks of voxels.

  Args:
    cube: int16 `schema.CUBE_SHAPE` [x, y, z], HU.

  Returns:
    float32 `THUMBNAIL_SHAPE` [x, y, z], HU.
  """
  x, y, z = THUMBNAIL_SHAPE
  blocks = cube.reshape(x, _BLOCK, y, _BLOCK, z, _BLOCK)
  return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def air_share(cube: np.ndarray) -> float:
  """Returns the share of voxels at or below `AIR_HU`; cube as above."""
  return float(np.count_nonzero(cube <= AIR_HU) / cube.size)


def correlate(thumbnails: np.ndarray) -> np.ndarray:
  """Returns the normalised cross-correlation of all pairs.

  Args:
    thumbnails: float32 (N, ...), HU.

  Returns:
    float64 (N, N) in [-1, 1]; 0 for a thumbnail that is flat.
  """
  rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
  rows -= rows.mean(axis=1, keepdims=True)
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  rows /= np.where(norms > 1e-6 * np.sqrt(rows.shape[1]), norms, np.inf)
  with threadpoolctl.threadpool_limits(1):
    return np.clip(rows @ rows.T, -1.0, 1.0)


def find_errors(
  vocabulary: vocabulary_lib.Vocabulary, truths: Mapping[str, bend.Truth]
) -> dict[tuple[str, int, int], float]:
  """Finds how far cubes lie from where their word truly is.

  That is the distance, in mm of the template, between the middle of a cube and
  the middle of the cube of the reference.

  Args:
    vocabulary: words and their cubes; those of native size count.
    truths: by scan id.

  Returns:
    mm by (split, word, rank), the reference itself left out.
  """
  wanted = {
    word.word: truths[word.scan_id].template_coordinates(
      _middle(word.place, schema.CUBE_SHAPE)
    )
    for word in vocabulary.words
  }
  references = {word.word: word.scan_id for word in vocabulary.words}
  found = {}
  for one in vocabulary.instances:
    if one.resolution == 0 and one.scan_id != references[one.word]:
      place = truths[one.scan_id].template_coordinates(
        _middle(one.origin, one.size)
      )
      distance = float(np.linalg.norm(place - wanted[one.word]))
      found[one.split, one.word, one.rank] = round(distance, 3)
  return found


def measure(
  words: Sequence[int],
  thumbnails: np.ndarray,
  air: Sequence[float],
  errors_mm: Mapping[tuple[str, int, int], float],
) -> Quality:
  """Measures the quality of words from some of their cubes.

  Args:
    words: word of each cube.
    thumbnails: float32 (N, ...) HU, from `make_thumbnail`.
    air: share of air in each cube, from `air_share`.
    errors_mm: from `find_errors`, or empty.
  """
  words = np.asarray(words)
  correlation = correlate(thumbnails)
  same = words[:, np.newaxis] == words
  pairs = same & ~np.eye(len(words), dtype=bool)
  silhouettes = _silhouettes(correlation, words)
  scores = {}
  for word in np.unique(words).tolist():
    mine = words == word
    scores[word] = Scores(
      cubes=int(mine.sum()),
      within=_mean(correlation[mine][pairs[mine]]),
      between=_mean(correlation[mine][~same[mine]]),
      silhouette=_mean(silhouettes[mine]) if silhouettes is not None else None,
      air=_mean(np.asarray(air)[mine]),
      error_mm=_mean([mm for key, mm in errors_mm.items() if key[1] == word]),
    )
  means = {
    name: _mean(
      [
        value
        for one in scores.values()
        if (value := getattr(one, name)) is not None
      ]
    )
    for name in ('within', 'between', 'silhouette', 'air')
  }
  overall = Scores(
    cubes=len(words), error_mm=_mean(list(errors_mm.values())), **means
  )
  return Quality(overall, scores, dict(errors_mm))


def write_quality(folder: str, quality: Quality) -> None:
  """Writes quality.json."""
  contents = {
    'overall': dataclasses.asdict(quality.overall),
    'words': [
      {'word': word, **dataclasses.asdict(scores)}
      for word, scores in sorted(quality.words.items())
    ],
    'errors_mm': [
      {'split': split, 'word': word, 'rank': rank, 'error_mm': mm}
      for (split, word, rank), mm in sorted(quality.errors_mm.items())
    ],
  }
  with (
    output_file.replacing(os.path.join(folder, QUALITY_FILE)) as partial,
    open(partial, 'w', encoding='utf-8') as file,
  ):
    json.dump(contents, file, indent=1)
    file.write('\n')


def read_quality(folder: str) -> Quality:
  """Reads what `write_quality` wrote.

  Raises:
    UserError: the file is missing or is not what was expected.
  """
  path = os.path.join(folder, QUALITY_FILE)
  try:
    with open(path, encoding='utf-8') as file:
      contents = json.load(file)
    return Quality(
      overall=_read_scores(contents['overall']),
      words={
        int(one.pop('word')): _read_scores(one) for one in contents['words']
      },
      errors_mm={
        (str(one['split']), int(one['word']), int(one['rank'])): float(
          one['error_mm']
        )
        for one in contents['errors_mm']
      },
    )
  except (
    *(OSError, AttributeError, KeyError, TypeError, ValueError),
    *(OverflowError, RecursionError),
  ) as error:
    raise errors.UserError(
      f'{path} cannot be read: {error!r}; it is written by tfds build and by'
      ' beam_jobs.discover_words --quality'
    ) from error


def _read_scores(contents) -> Scores:
  scores = Scores(**contents)
  for name, value in contents.items():
    if value is not None and not isinstance(value, (int, float)):
      raise ValueError(f'{name} is {value!r}')
  return scores


def _middle(origin, size) -> np.ndarray:
  """Returns the middle of a box as a voxel coordinate."""
  return np.add(origin, (np.asarray(size, float) - 1) / 2)


def _silhouettes(correlation, words) -> np.ndarray | None:
  """Returns a silhouette per cube, None where it is not defined."""
  if not 2 <= len(np.unique(words)) < len(words):
    return None
  distances = 1.0 - correlation
  np.fill_diagonal(distances, 0.0)
  return metrics.silhouette_samples(distances, words, metric='precomputed')


def _mean(values) -> float | None:
  return round(float(np.mean(values)), _DIGITS) if len(values) else None


def _text(value: float | None) -> str:
  return 'unknown' if value is None else f'{value:.3f}'
