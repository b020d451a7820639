r"""Writes a data set of visual words in the layout that TransVW is released in.

  python tools/export_npy.py --data DATA --output NPY

reads what `tfds build transvw_luna16 --data_dir DATA` wrote. For every 50 words
there are train_data{1,2,3}_vwGen_ex_ref_fold{i}.0.npy, train_label{1,2,3}_...,
val_data1_... and val_label1_...: words ascending, the patients of a word by
rank, every one of them (the published script loses the last row of each file).
Cubes go straight to the disk, 0.5 MB each in float32, twice that in float64,
the type of the published script; `tfds build transvw_released` reads both back.
"""

import collections
from collections.abc import Iterator
import os

from absl import flags
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.scans import released_npy
from transvw_tf2.training import built_data

_DATA = flags.DEFINE_string(
  'data', None, 'The --data_dir of `tfds build`.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to make.', required=True)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'float64'], 'Of cubes and labels.'
)
_FIRST_FOLD = flags.DEFINE_integer(
  'first_fold', 0, 'Number i in the names of the first files.', lower_bound=0
)

_SPLITS = (schema.TRAIN, schema.VALIDATION)
_PLACE = ('word', 'rank', 'resolution')
_FEATURES = ('cube', *_PLACE)


def export(
  data_dir: str, output: str, dtype: str = 'float32', first_fold: int = 0
) -> list[str]:
  """Writes the cubes of a data set to a new folder of .npy files.

  Args:
    data_dir: see `built_data.find_data_dir`.
    output: folder to make; it appears only when all is written.
    dtype: 'float32' or 'float64', of cubes and labels.
    first_fold: number of the first files.

  Returns:
    Sorted names of the files.

  Raises:
    UserError: `output` exists or cannot be written, or the data set lacks what
      the files need.
  """
  output_lock.check_new(output, 'folder')
  data = built_data.open_data(data_dir, _FEATURES)
  if data.shape != schema.CUBE_SHAPE:
    raise errors.UserError(
      f'data set {data.data_dir} has cubes of {data.shape} voxels;'
      f' {schema.CUBE_SHAPE} are wanted: give one that transvw_luna16 built'
    )
  with output_lock.making(output) as temporary:
    for split in _SPLITS:
      if data.sizes.get(split):
        _export_split(data, split, temporary, np.dtype(dtype), first_fold)
  return sorted(os.listdir(output))


def _export_split(data, split, folder, dtype, first_fold) -> None:
  """Writes the files of one split."""
  cubes = _read_places(data, split)
  folds = _find_rows(data, split, cubes)
  files = {}
  for fold, rows in enumerate(folds):
    labels = np.array([[word] for word, _ in rows], dtype)
    for resolution in _resolutions(split):
      names = (split, resolution, first_fold + fold)
      path = os.path.join(folder, released_npy.file_name('label', *names))
      np.save(path, labels)
      path = os.path.join(folder, released_npy.file_name('data', *names))
      # Mapped: the files are several GB, and cubes come in any order.
      files[fold, resolution] = _make_file(path, dtype, len(rows))
  examples = tfds.as_numpy(data.builder.as_dataset(split))
  for one in tqdm.tqdm(examples, split, len(cubes), unit='cube', disable=None):
    word, rank = int(one['word']), int(one['rank'])
    fold = word // released_npy.WORDS_PER_FILE
    row = folds[fold][word, rank]
    files[fold, int(one['resolution'])][row] = schema.scale_hu(
      one['cube'].astype(np.float64)
    )
  for file in files.values():
    file.flush()


def _make_file(path: str, dtype: np.dtype, rows: int) -> np.memmap:
  """Makes a mapped file of cubes, with all the room that it takes.

  A disk that is full later would end the process with SIGBUS.
  """
  cubes = np.lib.format.open_memmap(
    path, 'w+', dtype, (rows, *schema.CUBE_SHAPE)
  )
  with open(path, 'r+b') as file:
    os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
  return cubes


def _read_places(data, split) -> list[tuple[int, int, int]]:
  """Returns (word, rank, resolution) of all cubes, which are not decoded."""
  examples = data.builder.as_dataset(
    split, decoders=tfds.decode.PartialDecoding(dict.fromkeys(_PLACE, True))
  )
  return [
    tuple(int(one[name]) for name in _PLACE) for one in tfds.as_numpy(examples)
  ]


def _find_rows(data, split, cubes) -> list[dict[tuple[int, int], int]]:
  """Returns the row of each (word, rank), a dict for each file."""
  wanted = list(_resolutions(split))
  for place, found in _group(cubes):
    if found != wanted:
      word, rank = place
      raise errors.UserError(
        f'data set {data.data_dir} has resolutions {found} of word {word},'
        f' rank {rank}, in split {split}; {wanted} are wanted: build it anew'
      )
  size = released_npy.WORDS_PER_FILE
  folds = [{} for _ in range(0, len(data.words), size)]
  for place, _ in _group(cubes):
    rows = folds[place[0] // size]
    rows[place] = len(rows)
  for fold, rows in enumerate(folds):
    if not rows:
      raise errors.UserError(
        f'data set {data.data_dir} has no cubes of the words from'
        f' {fold * size} on in split {split}: build it anew'
      )
  return folds


def _group(cubes) -> Iterator[tuple[tuple[int, int], list[int]]]:
  """Yields ((word, rank), sorted resolutions), words ascending, by rank."""
  grouped = collections.defaultdict(list)
  for word, rank, resolution in sorted(cubes):
    grouped[word, rank].append(resolution)
  yield from grouped.items()


def _resolutions(split: str) -> tuple[int, ...]:
  if split == schema.TRAIN:
    return schema.TRAIN_RESOLUTIONS
  return schema.VALIDATION_RESOLUTIONS


def main(argv):
  del argv
  names = export(_DATA.value, _OUTPUT.value, _DTYPE.value, _FIRST_FOLD.value)
  print(f'{len(names)} files in {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main)
