r"""TFDS builder: the released .npy files of TransVW -> TFRecord shards.

  cd beam_jobs && tfds build transvw_released --manual_dir NPY --data_dir DATA

or, from anywhere,

  tfds build transvw_released --imports beam_jobs.transvw_released \
      --manual_dir NPY --data_dir DATA

The published study used the first 44 words of its 50:
`--config '{"name": "study", "words": 44}'`. A cube is read when it is written,
so that the files, several GB, never lie in memory. First a line says what the
build will read, write and take.
"""

import dataclasses
import os
import time
from typing import ClassVar

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from beam_jobs import amounts
from beam_jobs import builders
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import record_writer
from beam_jobs import word_plan
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import released_npy

_WANTED = (
  'the released .npy files, such as'
  f' {released_npy.file_name("data", schema.TRAIN, 0, 0)}'
)


@dataclasses.dataclass
class BuilderConfig(tfds.core.BuilderConfig):
  """Which of the released words are taken.

  Attributes:
    words: the first so many words; None takes all.
  """

  words: int | None = None

  def __new__(cls, *args, **fields):
    """Checks the names of the fields, which come from the JSON of --config."""
    builders.check_config_fields(
      cls, args, fields, '{"name": "study", "words": 44}'
    )
    return super().__new__(cls)

  def __post_init__(self):
    words = self.words
    if words is not None and (
      not isinstance(words, int) or isinstance(words, bool) or words < 1
    ):
      raise errors.UserError(
        f'config field words must be an integer, at least 1, got {words!r}'
      )


class Builder(builders.OneBuild, tfds.core.GeneratorBasedBuilder):
  """Writes the released cubes like those of transvw_luna16.

  What the files do not know: `scan_id` is released-{split}-fold{i}-row{r},
  `origin` is -1 and so is `size`, but for native cubes; `spacing` and
  `distance` are NaN. `rank` is 0 for the first row of a word.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'Initial release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  --manual_dir is a folder with the .npy files that the authors release, see
  https://github.com/fhaghighi/TransVW, or that tools/export_npy.py wrote:
  train_data{1,2,3}_vwGen_ex_ref_fold{i}.0.npy, train_label{1,2,3}_..., and,
  for the validation split, val_data1_... and val_label1_....
  """
  builder_config_cls = BuilderConfig
  BUILDER_CONFIGS: ClassVar = [
    BuilderConfig(name='default', description='All words of the files.')
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=builders.make_features(),
      supervised_keys=('cube', 'word'),
      homepage='https://github.com/fhaghighi/TransVW',
    )

  def _example_writer(self):
    return record_writer.DeterministicWriter(self.info.file_format)

  def _split_generators(self, dl_manager):
    folder = builders.local_folder(self.data_path)
    parts = released_npy.open_parts(
      builders.find_manual_dir(dl_manager, _WANTED)
    )
    found = 1 + max(int(part.words[-1]) for part in parts)
    words = self.builder_config.words or found
    if words > found:
      raise errors.UserError(
        f'config field words is {words}, but the files hold {found} words;'
        ' give that or less, or leave the field out'
      )
    self.info.features['word'].names = [f'{word:04d}' for word in range(words)]
    rows = {
      split: sum(
        _count_rows(part, words) for part in parts if part.split == split
      )
      for split in (schema.TRAIN, schema.VALIDATION)
    }
    _make_plan(parts, words, rows, os.path.dirname(folder)).announce()
    _print_summary(parts, words)
    progress.write_counters(folder, cubes={'words': words, 'cubes': rows})
    generators = {}
    for split in (schema.TRAIN, schema.VALIDATION):
      of_split = [
        one for one in parts if one.split == split and one.words[0] < words
      ]
      if of_split:
        generators[split] = self._generate_examples(of_split, words)
      else:
        logging.warning('no files for the %s split: it is left out', split)
    return generators

  def _generate_examples(self, parts, words):
    """Gives (key, example) of the cubes of a split, one at a time."""
    for part in parts:
      for row, rank in enumerate(part.ranks()[: _count_rows(part, words)]):
        yield _example(part, row, rank)


def _count_rows(part: released_npy.Part, words: int) -> int:
  """Returns how many cubes of a file are of the first words."""
  return int(np.searchsorted(part.words, words))


def _make_plan(parts, words, rows, folder) -> plan.Plan:
  """Plans the build; the probe reads a few cubes of the first file."""
  read = sum(_count_rows(part, words) * part.cubes[:1].nbytes for part in parts)
  files = [part for part in parts if part.words[0] < words]
  cubes = sum(rows.values())
  longest = max(len(_example(part, 0, 0)[1]['scan_id']) for part in files)
  # Numbers of rows have more digits.
  record_bytes = word_plan.CUBE_BYTES + word_plan.FEATURE_BYTES + longest + 8
  probed = min(8, _count_rows(files[0], words))
  start = time.monotonic()
  for row in range(probed):
    files[0].read_cube(row)
  seconds = (time.monotonic() - start) / probed * cubes
  shards = sum(
    plan.count_shards(count, record_bytes) for count in rows.values()
  )
  return plan.make(
    reads=f'{len(files)} files, {amounts.size(read)} to read',
    makes=f'{words} words, {cubes:,} cubes,'
    f' {amounts.size(cubes * record_bytes)} in {shards}'
    f' shard{"s" if shards > 1 else ""}',
    seconds=seconds + cubes * word_plan.RECORD_SECONDS,
    # As shuffled files and as shards.
    seconds_alone=plan.disk_seconds(folder, 2 * cubes * record_bytes),
    needed_bytes=plan.data_set_bytes(cubes, record_bytes, 0, 0),
    folder=folder,
    options=None,
  )


def _example(part: released_npy.Part, row: int, rank: int):
  native = part.resolution == 0
  word = int(part.words[row])
  scan_id = f'released-{part.split}-fold{part.fold}-row{row}'
  return (
    schema.example_key(scan_id, word, part.resolution),
    {
      'cube': part.read_cube(row),
      'word': word,
      'scan_id': scan_id,
      'resolution': part.resolution,
      'origin': np.full(3, -1, np.int32),
      'size': np.asarray(schema.CUBE_SHAPE if native else [-1] * 3, np.int32),
      'spacing': np.full(3, np.nan, np.float32),
      'rank': int(rank),
      'distance': np.float32(np.nan),
    },
  )


def _print_summary(parts, words) -> None:
  taken = [part for part in parts if part.words[0] < words]
  cubes = sum(_count_rows(part, words) for part in taken)
  print(f'words: {words}, cubes: {cubes}')
  for note in released_npy.notes(taken, words):
    print(f'note: {note}')
