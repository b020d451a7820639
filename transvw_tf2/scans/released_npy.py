"""Visual words in the layout that the authors of TransVW release.

Per 50 words there is one number ("fold") and these NumPy files: cubes of
training patients in three resolutions, cubes of validation patients in one, and
a file of labels beside each.

  train_data{1,2,3}_vwGen_ex_ref_fold{i}.0.npy    (N, 64, 64, 32) in [0, 1]
  train_label{1,2,3}_vwGen_ex_ref_fold{i}.0.npy   (N, 1)
  val_data1_vwGen_ex_ref_fold{i}.0.npy
  val_label1_vwGen_ex_ref_fold{i}.0.npy

Words ascend over the rows of a file, and the patients of a word are in the
order of their rank. Row r of train_data1, 2 and 3 is the same patient and word.
Cubes stay on the disk: a file is memory-mapped, and a row is read when it is
asked for.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import os
import re

import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import mapped_array
from transvw_tf2.scans import storage

WORDS_PER_FILE = 50

_PREFIX = {schema.TRAIN: 'train', schema.VALIDATION: 'val'}
_SPLIT = {prefix: split for split, prefix in _PREFIX.items()}
_RESOLUTIONS = {
  schema.TRAIN: schema.TRAIN_RESOLUTIONS,
  schema.VALIDATION: schema.VALIDATION_RESOLUTIONS,
}
_NAME = re.compile(
  r'(train|val)_(data|label)([1-3])_vwGen_ex_ref_fold(\d+)\.0\.npy'
)
_FLOATS = (np.float32, np.float64)
# Resizing in floats may leave [0, 1] by rounding; 0.002 HU.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A file of cubes and its file of labels.

  Attributes:
    split: `schema.TRAIN` or `schema.VALIDATION`.
    fold: number in the names of the files.
    resolution: one of `schema.RESOLUTIONS`.
    path: of the cubes.
    cubes: memory-mapped float32 or float64 (N, 64, 64, 32), clipped HU scaled
      to [0, 1], [x, y, z].
    words: int64 (N,), ascending.
  """

  split: str
  fold: int
  resolution: int
  path: str
  cubes: np.ndarray
  words: np.ndarray

  def ranks(self) -> np.ndarray:
    """Returns the rank of each row among the rows of its word, int64 (N,)."""
    return np.arange(len(self.words)) - np.searchsorted(self.words, self.words)

  def read_cube(self, row: int) -> np.ndarray:
    """Reads one cube, int16 [x, y, z], HU.

    Raises:
      UserError: it has values outside of [0, 1].
    """
    cube = np.asarray(self.cubes[row], np.float64)
    low, high = cube.min(), cube.max()
    # Written so that NaN fails too.
    if not (low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE):
      raise errors.UserError(
        f'{self.path} row {row} has values {low:g} .. {high:g}; clipped HU'
        ' scaled to [0, 1] are expected: (HU + 1000) / 2000'
      )
    scale = schema.HU_MAX - schema.HU_MIN
    hu = np.rint(np.clip(cube, 0.0, 1.0) * scale + schema.HU_MIN)
    return hu.astype(np.int16)


def file_name(kind: str, split: str, resolution: int, fold: int) -> str:
  """Returns the name of a file; `kind` is 'data' or 'label'."""
  return (
    f'{_PREFIX[split]}_{kind}{resolution + 1}_vwGen_ex_ref_fold{fold}.0.npy'
  )


def open_parts(folder: str) -> list[Part]:
  """Opens the files of a folder, sorted by split, fold and resolution.

  Checked is all but the values of the cubes, which `Part.read_cube` checks.

  Raises:
    UserError: a file is missing, or holds something else than it should.
  """
  folds = _find_folds(folder)
  parts = []
  for split in _PREFIX:
    for index, fold in enumerate(folds.get(split, ())):
      same = [
        _open_part(folder, split, fold, resolution, index)
        for resolution in _RESOLUTIONS[split]
      ]
      for other in same[1:]:
        _check_same_words(folder, same[0], other)
      parts += same
  _check_all_words(folder, parts)
  return parts


def notes(parts: Sequence[Part], words: int) -> Iterator[str]:
  """Yields a line for each file whose words have different numbers of rows.

  Args:
    parts: from `open_parts`.
    words: only the first so many are looked at.
  """
  for part in parts:
    numbers, counts = np.unique(
      part.words[part.words < words], return_counts=True
    )
    if not len(numbers):
      continue
    few = np.flatnonzero(counts < counts.max())
    last = part.words[-1]
    if few.size == 1 and numbers[few[0]] == last:
      yield (
        f'{part.path} has {counts[-1]} rows of its last word, {last}, and'
        f' {counts.max()} of the others; the published script loses the last'
        ' row of each file'
      )
    elif few.size:
      yield (
        f'{part.path} has {counts.min()} to {counts.max()} rows per word,'
        f' fewest of word {numbers[counts.argmin()]}'
      )


def _find_folds(folder: str) -> dict[str, list[int]]:
  """Returns the sorted folds of each split that has files."""
  if storage.is_remote(folder):
    raise errors.UserError(
      f'{folder} is not on this machine, where the released .npy files are read'
      ' row by row; copy them and give the local folder'
    )
  try:
    names = os.listdir(folder)
  except OSError as error:
    raise errors.UserError(
      f'cannot list {folder}: {error.strerror}; give the folder of the'
      ' released .npy files'
    ) from error
  folds: dict[str, set[int]] = {}
  for name in names:
    if matched := _NAME.fullmatch(name):
      folds.setdefault(_SPLIT[matched[1]], set()).add(int(matched[4]))
  if schema.TRAIN not in folds:
    wanted = file_name('data', schema.TRAIN, 0, 0)
    raise errors.UserError(
      f'no released training data in {folder}; files such as {wanted} are'
      ' expected right in it'
    )
  train = sorted(folds[schema.TRAIN])
  if train != list(range(train[0], train[0] + len(train))):
    raise errors.UserError(
      f'{folder} has training files of folds {_list(train)}; those between are'
      ' missing: add them, or remove the ones after the gap'
    )
  validation = sorted(folds.get(schema.VALIDATION, train))
  if validation != train:
    raise errors.UserError(
      f'{folder} has training files of folds {_list(train)} and validation'
      f' files of folds {_list(validation)}; add those that are missing'
    )
  return {split: sorted(found) for split, found in folds.items()}


def _open_part(folder, split, fold, resolution, index) -> Part:
  data, label = (
    os.path.join(folder, file_name(kind, split, resolution, fold))
    for kind in ('data', 'label')
  )
  cubes = _open(data)
  if cubes.dtype not in _FLOATS or cubes.shape[1:] != schema.CUBE_SHAPE:
    raise errors.UserError(
      f'{data} holds {cubes.dtype} {cubes.shape}; float32 or float64 (N,'
      f' {", ".join(map(str, schema.CUBE_SHAPE))}) is expected'
    )
  words = _check_labels(label, _open(label), index)
  if len(words) != len(cubes):
    raise errors.UserError(
      f'{data} has {len(cubes)} rows and {label} has {len(words)}; as many are'
      ' expected: get both files again'
    )
  return Part(split, fold, resolution, data, cubes, words)


def _open(path: str) -> np.ndarray:
  """Maps a file; never unpickles."""
  try:
    return mapped_array.open_array(path)
  except FileNotFoundError as error:
    raise errors.UserError(
      f'{path} is missing; the files of data and labels, of all three'
      ' resolutions of training, belong together'
    ) from error
  except OSError as error:
    raise errors.UserError(f'{path} cannot be read: {error}') from error
  except Exception as error:
    text = ' '.join(str(error).split())
    if 'Python objects' in text:
      reason = 'it holds pickled Python objects, which are never loaded'
    elif 'greater than file size' in text:
      reason = 'it is cut short'
    else:
      reason = f'it is no whole .npy file ({text or type(error).__name__})'
    raise errors.UserError(
      f'{path} is refused: {reason}; get the file again'
    ) from error


def _check_labels(path: str, labels: np.ndarray, index: int) -> np.ndarray:
  """Returns labels as int64 (N,); `index` counts the files of a split."""
  if labels.dtype.kind not in 'iuf' or labels.shape[1:] != (1,):
    raise errors.UserError(
      f'{path} holds {labels.dtype} {labels.shape}; numbers (N, 1) are expected'
    )
  if not len(labels):
    raise errors.UserError(f'{path} has no rows; get the file again')
  values = np.asarray(labels[:, 0], np.float64)
  low = WORDS_PER_FILE * index
  high = low + WORDS_PER_FILE - 1
  _refuse_first(
    path,
    values,
    # Written so that NaN is wrong too.
    ~((values >= low) & (values <= high) & (values == np.rint(values))),
    f'a whole number from {low} to {high} is expected, for a file holds'
    f' {WORDS_PER_FILE} words and this is number {index + 1} of its kind',
  )
  falls = np.diff(values, prepend=values[0]) < 0
  _refuse_first(path, values, falls, 'labels must not fall from row to row')
  return values.astype(np.int64)


def _refuse_first(path, values, wrong, expected) -> None:
  if wrong.any():
    row = int(wrong.argmax())
    raise errors.UserError(
      f'{path} row {row} has label {values[row]:g}; {expected}'
    )


def _check_same_words(folder, first: Part, other: Part) -> None:
  """Raises unless both have the same words in the same rows."""
  first_path, path = (
    os.path.join(
      folder, file_name('label', one.split, one.resolution, one.fold)
    )
    for one in (first, other)
  )
  if len(first.words) != len(other.words):
    raise errors.UserError(
      f'{first_path} has {len(first.words)} rows and {path} has'
      f' {len(other.words)}; a row must be the same patient and word in both'
    )
  differ = first.words != other.words
  if differ.any():
    row = int(differ.argmax())
    raise errors.UserError(
      f'{path} row {row} has label {other.words[row]}, and {first_path} has'
      f' {first.words[row]}; a row must be the same patient and word in both'
    )


def _check_all_words(folder, parts) -> None:
  """Raises unless the training words are 0, 1, ... and cover validation."""
  words = {split: _words_of(parts, split) for split in _PREFIX}
  missing = np.setdiff1d(
    np.arange(words[schema.TRAIN].max() + 1), words[schema.TRAIN]
  )
  if missing.size:
    raise errors.UserError(
      f'{folder} has no training rows of word {missing[0]}, but of later ones;'
      ' words 0, 1, ... without a gap are expected'
    )
  unknown = np.setdiff1d(words[schema.VALIDATION], words[schema.TRAIN])
  if unknown.size:
    raise errors.UserError(
      f'{folder} has validation rows of word {unknown[0]}, but no training'
      ' rows of it'
    )


def _words_of(parts: Sequence[Part], split: str) -> np.ndarray:
  found = [one.words for one in parts if one.split == split]
  return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _list(numbers: Sequence[int]) -> str:
  return ', '.join(map(str, numbers))
