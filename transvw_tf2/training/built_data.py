"""Finds and opens a built data set, and says what is wrong with it.

The data set describes itself, so neither its builder nor Beam is needed.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import glob
import os

import tensorflow as tf
import tensorflow_datasets as tfds

from transvw_tf2 import errors
from transvw_tf2.training import damaged_data

_INFO_FILE = 'dataset_info.json'

# What pre-training reads: a cube and the number of its word.
CUBES_AND_WORDS = ('cube', 'word')
# What the autoencoder reads.
THUMBNAILS = ('thumbnail',)
# What target tasks read: a cube and its class, or its mask.
CUBES_AND_LABELS = ('cube', 'label')
CUBES_AND_MASKS = ('cube', 'mask')
# What writes a data set with such features.
_MADE_BY = {
  CUBES_AND_WORDS: '`tfds build transvw_luna16`',
  ('cube',): '`tfds build transvw_luna16`',
  THUMBNAILS: '`python -m beam_jobs.index_scans`',
  CUBES_AND_LABELS: '`tfds build luna16_nodules` or `labelled_scans`',
  CUBES_AND_MASKS: '`tfds build luna16_nodules` or `labelled_scans`',
}
_ANY_BUILDER = 'its builder'


@dataclasses.dataclass(frozen=True)
class Data:
  """A built data set.

  Attributes:
    data_dir: folder of the data set's version.
    builder: reads it.
    features: names of what is read; the first is the volume, int16 HU.
    shape: (x, y, z) of a volume in voxels.
    words: names of the visual words where they are read, C = len(words).
    sizes: examples per split.
    classes: names of the classes where `label` is read.
    records: string (N,) by split, what `make_dataset` keeps in memory.
    selected: examples by split where `records` are only some of them, see
      label_fraction; an epoch is as long as with all, so that they recur.
  """

  data_dir: str
  builder: tfds.core.DatasetBuilder
  features: tuple[str, ...]
  shape: tuple[int, int, int]
  words: tuple[str, ...]
  sizes: dict[str, int]
  classes: tuple[str, ...] = ()
  records: dict[str, tf.Tensor] = dataclasses.field(
    default_factory=dict, repr=False, compare=False
  )
  selected: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def volume(self) -> str:
    """Name of the volume, which is also that of an example."""
    return self.features[0]

  def size(self, split: str) -> int:
    """Returns the examples of `split`; raises UserError when it has none."""
    if not self.sizes.get(split):
      raise errors.UserError(
        f'data set {self.data_dir} has no {self.volume}s in split {split!r},'
        f' its splits are {self.sizes}: build it with scans for {split}'
      )
    return self.sizes[split]

  @property
  def made_by(self) -> str:
    """What builds such data, for messages."""
    return _made_by(self.features)

  def make_decoder(
    self, features: Sequence[str] = ()
  ) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns what reads features, all by default, out of a string ()."""
    found = self.builder.info.features
    wanted = tfds.features.FeaturesDict(
      {name: found[name] for name in features or self.features}
    )
    return wanted.deserialize_example

  def shards(self, split: str) -> dict[str, int]:
    """Returns the paths of the shards and how many examples each holds."""
    info = self.builder.info.splits[split]
    paths = [os.fspath(path) for path in info.filepaths]
    return dict(zip(paths, info.shard_lengths, strict=True))


def _made_by(features) -> str:
  return _MADE_BY.get(tuple(features[:2]), _ANY_BUILDER)


def find_data_dir(
  data_dir: str, made_by: str = _MADE_BY[CUBES_AND_WORDS]
) -> str:
  """Returns the folder of the only data set version at or below `data_dir`.

  Args:
    data_dir: .../transvw_luna16/default/1.0.0 itself, or a folder above it such
      as the --data_dir given to `tfds build`.
    made_by: what builds such data, for messages.

  Raises:
    UserError: no such folder, no data set in it, or more than one.
  """
  if not tf.io.gfile.isdir(data_dir):
    raise errors.UserError(
      f'data set folder {data_dir!r} does not exist: build it with {made_by},'
      ' or give another --data'
    )
  if tf.io.gfile.exists(os.path.join(data_dir, _INFO_FILE)):
    return data_dir
  found = []
  # data_dir/name/config/version; a data set without config has one level less.
  for depth in range(1, 4):
    pattern = os.path.join(glob.escape(data_dir), *['*'] * depth, _INFO_FILE)
    found += [os.path.dirname(path) for path in tf.io.gfile.glob(pattern)]
  # Of builds that go on or were killed. The user's own folders may say so too.
  found = sorted(
    path for path in found if 'incomplete' not in path[len(data_dir) :]
  )
  if not found:
    raise errors.UserError(
      f'no data set (no {_INFO_FILE}) at or below {data_dir!r}: build it with'
      f' {made_by}, or give another --data'
    )
  if len(found) > 1:
    raise errors.UserError(
      f'{len(found)} data sets below {data_dir!r}, wanted one: give one of '
      f'{found} as --data'
    )
  return found[0]


def open_builder(data_dir: str) -> tfds.core.DatasetBuilder:
  """Returns what reads the data set in the folder of a version.

  Raises:
    UserError: its description is damaged.
  """
  try:
    return tfds.builder_from_directory(data_dir)
  except Exception as error:  # tfds raises many kinds for damaged metadata
    raise errors.UserError(
      f'data set {data_dir} cannot be opened'
      f' ({" ".join(str(error).split())[:200]}): build it anew'
    ) from error


def open_data(data_dir: str, features: Sequence[str] = CUBES_AND_WORDS) -> Data:
  """Opens a built data set.

  Args:
    data_dir: see find_data_dir.
    features: see Data; what a task reads.

  Raises:
    UserError: no readable data set with these features is there, or a shard is
      missing or not as long as it was when it was written.
  """
  made_by = _made_by(features)
  if not data_dir:
    raise errors.UserError(
      f'no data set is given: add --data DIR, the folder that {made_by} wrote'
    )
  data_dir = find_data_dir(str(data_dir), made_by)
  builder = open_builder(data_dir)
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    raise errors.UserError(
      f'data set {data_dir} has {builder.info.file_format.value} files, wanted'
      ' tfrecord: build it anew with --file_format=tfrecord'
    )
  found = builder.info.features
  missing = set(features) - set(found)
  if missing:
    raise errors.UserError(
      f'data set {data_dir} has features {sorted(found)}, wanted also '
      f'{sorted(missing)}: give one of {made_by} as --data'
    )
  words, classes = (
    _names_of(found, name, data_dir) if name in features else ()
    for name in ('word', 'label')
  )
  data = Data(
    data_dir=data_dir,
    builder=builder,
    features=tuple(features),
    shape=tuple(found[features[0]].shape),
    words=words,
    classes=classes,
    sizes={
      name: split.num_examples for name, split in builder.info.splits.items()
    },
  )
  for split in data.sizes:
    damaged_data.check_shards(data, split)
  return data


def _names_of(features, name, data_dir) -> tuple[str, ...]:
  names = getattr(features[name], 'names', None)
  if not names:
    raise errors.UserError(
      f'data set {data_dir} names no {name}s: build it anew'
    )
  return tuple(names)
