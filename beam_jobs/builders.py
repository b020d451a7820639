"""What the TFDS builders of cubes share: features, config checks, folders."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import glob
import json
import math
import os
import shutil
import sys

import numpy as np
import tensorflow_datasets as tfds

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.scans import storage

# Beside the shards: with which fields of its config a data set was built.
_FIELDS_FILE = 'config.json'


class NotForThisTaskError(errors.UserError):
  """What a data set of one task would be made of is not there."""


class OneBuild:
  """Mixin of a builder: of one data set, one build at a time."""

  def __init__(self, *, data_dir: os.PathLike | None = None, **kwargs):
    """As in TFDS; a relative --data_dir is found by all workers too."""
    data_dir = data_dir or os.environ.get('TFDS_DATA_DIR')
    if data_dir:
      data_dir = storage.absolute(os.path.expanduser(data_dir))
    super().__init__(data_dir=data_dir, **kwargs)

  def download_and_prepare(self, **kwargs) -> None:
    """As in TFDS; removes what builds that were killed left, all their cubes.

    What is built may be loaded (`tfds.load` comes here) by many at a time.

    Raises:
      UserError: another build of the same data set is running.
    """
    folder = os.fspath(self.data_path)
    config = kwargs.get('download_config') or tfds.download.DownloadConfig()
    reuses = (
      config.download_mode == tfds.download.GenerateMode.REUSE_DATASET_IF_EXISTS
    )
    # A bucket has no locks.
    if '://' in folder or (reuses and os.path.exists(folder)):
      self._check_fields(folder)
      super().download_and_prepare(**kwargs)
      return
    parent, version = os.path.split(folder)
    with output_lock.hold(parent, folder):
      # As TFDS names them; each build gives them another name.
      pattern = os.path.join(glob.escape(parent), f'incomplete.*_{version}')
      for left in glob.glob(pattern):
        shutil.rmtree(left, ignore_errors=True)
      super().download_and_prepare(**kwargs)
      if os.path.exists(folder):  # not where a task was left out
        text = json.dumps(self._fields(), indent=1) + '\n'
        output_file.write(os.path.join(folder, _FIELDS_FILE), text.encode())

  def _fields(self) -> dict[str, object]:
    """Returns the fields of the config that are not of TFDS itself."""
    config = self.builder_config
    return json.loads(
      json.dumps({name: getattr(config, name) for name in _own_fields(config)})
    )

  def _check_fields(self, folder) -> None:
    """Raises UserError where what is there was built with other fields.

    TFDS goes by the name of a config alone.
    """
    try:
      with open(os.path.join(folder, _FIELDS_FILE), encoding='utf-8') as file:
        built = json.load(file)
    except (OSError, ValueError):
      return  # built before there was such a file, or it is damaged
    for name, now in self._fields().items():
      if name in built and built[name] != now:
        raise errors.UserError(
          f'{folder} was built with {name} {json.dumps(built[name])}, now it is'
          f' {json.dumps(now)}: give the config another name, or --overwrite'
        )


def _own_fields(config) -> list[str]:
  of_tfds = {
    field.name for field in dataclasses.fields(tfds.core.BuilderConfig)
  }
  names = [field.name for field in dataclasses.fields(config)]
  return [name for name in names if name not in of_tfds]


def leaves_out(name: str, tasks: Sequence[str]) -> bool:
  """Returns whether a task may be left out: `tfds build` that names none.

  Args:
    name: of the builder.
    tasks: its named configs.
  """
  words = sys.argv[1:]
  named = any(word.startswith('--config') for word in words) or any(
    f'{name}/{task}' in word for word in words for task in tasks
  )
  return words[:1] == ['build'] and not named


def make_features() -> tfds.features.FeaturesDict:
  """Returns the features of a cube; they are the contract with training."""
  return tfds.features.FeaturesDict(
    {
      # HU in [-1000, 1000], indexed [x, y, z].
      'cube': tfds.features.Tensor(
        shape=schema.CUBE_SHAPE,
        dtype=np.int16,
        encoding=tfds.features.Encoding.BYTES,
      ),
      # The number of words is set when they are known.
      'word': tfds.features.ClassLabel(),
      'scan_id': tfds.features.Text(),
      # 0 = native size, 1 and 2 = random in-plane size.
      'resolution': tfds.features.Scalar(np.int32),
      # The box in the scan, voxels [x, y, z].
      'origin': tfds.features.Tensor(shape=(3,), dtype=np.int32),
      'size': tfds.features.Tensor(shape=(3,), dtype=np.int32),
      # mm between voxels of the scan, [x, y, z].
      'spacing': tfds.features.Tensor(shape=(3,), dtype=np.float32),
      # 0 for the patient nearest to the word's reference.
      'rank': tfds.features.Scalar(np.int32),
      # L2 distance of the descriptors of this patient and the reference.
      'distance': tfds.features.Scalar(np.float32),
    }
  )


def check_config_fields(
  config_class: type[tfds.core.BuilderConfig],
  positional: tuple,
  fields: Mapping[str, object],
  example: str,
) -> None:
  """Checks the names of a config's fields, which come from JSON.

  Called before the config is made, for a field that is not known would raise
  TypeError without saying what is.

  Args:
    config_class: a dataclass.
    positional: positional arguments, given by none but copies.
    fields: keyword arguments.
    example: a config with a name, in JSON.

  Raises:
    UserError: a field is unknown, or the name is missing.
  """
  known = [field.name for field in dataclasses.fields(config_class)]
  own = _own_fields(config_class)
  for name in fields:
    if name not in known:
      raise errors.UserError(
        f'unknown config field "{name}"; known are name, {", ".join(own)}'
      )
  if fields and not positional and 'name' not in fields:
    raise errors.UserError(
      f'a config needs a name of your choice, such as {example}'
    )


def check_number(
  config: tfds.core.BuilderConfig,
  name: str,
  least: float,
  kind: type | tuple[type, ...] = (int, float),
) -> None:
  """Raises UserError unless a field is a finite number, at least `least`."""
  value = getattr(config, name)
  if (
    not isinstance(value, kind)
    or isinstance(value, bool)
    or not least <= value < math.inf
  ):
    what = 'an integer' if kind is int else 'a number'
    raise errors.UserError(
      f'config field {name} is {value!r}, wanted {what}, at least {least}'
    )


def check_boolean(config: tfds.core.BuilderConfig, name: str) -> None:
  """Raises UserError unless a field is true or false; 'false' is neither."""
  value = getattr(config, name)
  if not isinstance(value, bool):
    raise errors.UserError(
      f'config field {name} must be true or false, got {value!r}'
    )


def local_folder(path: os.PathLike) -> str:
  """Returns the folder in which TFDS builds a data set.

  Raises:
    UserError: it is an address; more than TFDS writes is left there.
  """
  folder = os.fspath(path)
  if storage.is_remote(folder):
    raise errors.UserError(
      f'--data_dir of {folder} is an address, wanted a folder that this machine'
      ' and all workers see; copy the data set to the store when it is whole'
    )
  output_file.check_no_pattern('--data_dir of', folder)
  return folder


def find_manual_dir(dl_manager, wanted: str) -> str:
  """Returns --manual_dir, an absolute path or an address.

  Raises:
    UserError: a local one does not exist or is empty; the line says what is
      wanted.
  """
  # TFDS asks TensorFlow whether it exists, which does not know s3://.
  given = os.fspath(getattr(dl_manager, '_manual_dir', None) or '')
  if storage.is_remote(given):
    return given
  try:
    return os.path.abspath(dl_manager.manual_dir)
  except AssertionError as error:
    # The first sentence of TFDS names the folder.
    first = str(error).partition(' Create it')[0]
    raise errors.UserError(
      f'{first} --manual_dir must hold {wanted}'
    ) from error
