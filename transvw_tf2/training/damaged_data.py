"""Finds the shard that is missing, cut or foreign, to name it in one line.

The cheap part, whether all shards are there and as long in total as the data
set's own metadata say, is done whenever a data set is opened. Reading every
record is left for when something is known to be wrong.
"""

from collections.abc import Iterator
import contextlib

from absl import logging
import tensorflow as tf

from transvw_tf2 import errors

# Bytes that TFRecord adds to a record: its length and two checksums.
_RECORD_OVERHEAD = 16
# What a record that is not an example raises; the latter where TensorFlow
# quotes its bytes and they are no text.
_NO_EXAMPLE = (tf.errors.InvalidArgumentError, UnicodeDecodeError)
# What damage raises.
_ERRORS = (
  tf.errors.DataLossError,
  tf.errors.NotFoundError,
  tf.errors.PermissionDeniedError,
  tf.errors.FailedPreconditionError,  # of assert_cardinality
  *_NO_EXAMPLE,
)


def check_shards(data, split: str) -> None:
  """Looks whether shards are there and as long as when they were written.

  Args:
    data: an opened `built_data.Data`.
    split: its split.

  Raises:
    UserError: a shard is missing, cut, or of another build.
  """
  size = 0
  for path in data.shards(split):
    try:
      size += tf.io.gfile.stat(path).length
    except tf.errors.NotFoundError as error:
      raise errors.UserError(_missing(data, path)) from error
  info = data.builder.info.splits[split]
  # Of the examples, as TFDS counts them, or of the files; 0: not known.
  of_files = int(info.num_bytes)
  wanted = of_files + _RECORD_OVERHEAD * info.num_examples
  if size not in (wanted, of_files) and of_files:
    raise errors.UserError(
      find_damage(data, split)
      or f'the {split} shards of data set {data.data_dir} have {size} bytes,'
      f' its dataset_info.json says {wanted}: they are of different builds, so'
      f' build the data set anew with {data.made_by}'
    )


@contextlib.contextmanager
def explain(data, split: str) -> Iterator[None]:
  """Turns what damaged shards raise within it into one clear line.

  tf.data does not tell which file it could not read, so the split is read
  again, one shard after the other, after any error that may come from it. What
  does not is raised as it is.

  Args:
    data: an opened `built_data.Data`.
    split: the split that is read within.

  Raises:
    UserError: a shard is missing, cut, or holds something else.
  """
  try:
    yield
  except _ERRORS as error:
    damage = find_damage(data, split)
    if damage:
      raise errors.UserError(damage) from error
    raise


def find_damage(data, split: str) -> str | None:
  """Reads and decodes a split; returns a line on the first damaged shard.

  Args:
    data: an opened `built_data.Data`.
    split: its split.
  """
  logging.info('looking for a damaged shard of %s, %s', data.data_dir, split)
  decode = data.make_decoder()
  then = f'copy it again, or build the data set anew with {data.made_by}'
  for path, size in data.shards(split).items():
    count = 0
    try:
      for _ in tf.data.TFRecordDataset(path).map(decode):
        count += 1
    except tf.errors.NotFoundError:
      return _missing(data, path)
    except tf.errors.PermissionDeniedError:
      return (
        f'shard {path} may not be read by this user: have its owner permit it'
        f' (chmod a+r), as all of {data.data_dir}'
      )
    except _NO_EXAMPLE:
      return (
        f'shard {path} holds something else than examples with'
        f' {" and ".join(data.features)}, at record {count}: {then}'
      )
    except tf.errors.OpError:
      return (
        f'shard {path} is damaged, only {count} of its {size} examples can be'
        f' read: {then}'
      )
    if count != size:
      return f'shard {path} has {count} examples, wanted {size}: {then}'
  return None


def _missing(data, path):
  return (
    f'shard {path} is missing: copy all of {data.data_dir} again, or build the'
    f' data set anew with {data.made_by}'
  )
