"""Training on a fraction of the labels: those of some of the patients.

Nested for one seed: the patients of a tenth are among those of a half.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math

import tensorflow as tf
import tensorflow_datasets as tfds

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import input_pipeline


def choose_patients(
  scan_ids: Sequence[str], fraction: float, seed: int
) -> set[str]:
  """Returns ceil(fraction * N) of N patients, by a stable hash."""
  patients = sorted(
    set(scan_ids), key=lambda one: (schema.stable_hash(f'{seed}/{one}'), one)
  )
  # Rounded first: 0.1 * 30 is a little more than 3.
  return set(patients[: math.ceil(round(fraction * len(patients), 6))])


def select(
  data: built_data.Data, fraction: float, seed: int
) -> built_data.Data:
  """Keeps the training examples of a fraction of the patients.

  They are read into memory. An epoch stays as long as with all examples, so
  that fractions are compared after the same number of steps.

  Args:
    data: with a feature `scan_id`.
    fraction: of the training patients, above 0 and at most 1, which changes
      nothing.
    seed: decides which.

  Raises:
    UserError: the fraction is out of its range, the data set does not tell
      patients apart, or a class is left without an example.
  """
  if not 0 < fraction <= 1:
    raise errors.UserError(
      f'train.label_fraction is {fraction}, wanted above 0 and at most 1'
    )
  if fraction == 1:
    return data
  records, examples = _read(data)
  places = _choose_places(examples, fraction, seed)
  lacking = _find_lacking(data, examples, places)
  if lacking:
    raise errors.UserError(
      f'train.label_fraction {fraction} leaves no example of class {lacking!r}'
      f' in {data.data_dir}: raise it, or change train.seed'
    )
  return dataclasses.replace(
    data,
    records={schema.TRAIN: tf.gather(records, places)},
    selected={schema.TRAIN: len(places)},
  )


def check(data: built_data.Data, choices: Iterable[tuple[float, int]]) -> None:
  """Checks that `select` would find examples of all classes.

  Args:
    data: as of `select`.
    choices: fractions, above 0 and at most 1, and seeds.

  Raises:
    UserError: it would not, with all the choices that are wrong.
  """
  choices = [one for one in choices if one[0] < 1]
  if not choices or not data.classes:
    return
  _, examples = _read(data)
  wrong = []
  for fraction, seed in choices:
    lacking = _find_lacking(
      data, examples, _choose_places(examples, fraction, seed)
    )
    if lacking:
      wrong.append(f'{fraction:g} with seed {seed} (no {lacking!r})')
  if wrong:
    raise errors.UserError(
      f'fractions of the training labels of {data.data_dir} leave a class'
      f' without an example: {", ".join(wrong)}; wanted larger fractions'
    )


def check_split(data: built_data.Data, split: str) -> None:
  """Checks that a split has examples of all classes, by which it is measured.

  Raises:
    UserError: it lacks one.
  """
  labels = data.builder.as_dataset(
    split, decoders=tfds.decode.PartialDecoding({'label': True})
  )
  found = {int(one['label']) for one in labels.as_numpy_iterator()}
  missing = set(range(len(data.classes))) - found
  if missing:
    raise errors.UserError(
      f'split {split} of {data.data_dir} has no example of class'
      f' {data.classes[min(missing)]!r}, without which nothing can be measured:'
      ' build it with some'
    )


def _read(data):
  """Returns the training records, and `scan_id` and `label` of each."""
  if 'scan_id' not in data.builder.info.features:
    raise errors.UserError(
      f'a fraction of the labels is wanted, but {data.data_dir} has no feature'
      ' scan_id that tells patients apart: build it anew'
    )
  records = input_pipeline.read_records(data, schema.TRAIN)
  labelled = ['label'] if data.classes else []
  decode = data.make_decoder(['scan_id', *labelled])
  rows = list(
    tf.data.Dataset.from_tensor_slices(records)
    .map(decode, tf.data.AUTOTUNE)
    .as_numpy_iterator()
  )
  return records, rows


def _choose_places(examples, fraction, seed) -> list[int]:
  """Returns where the examples of the chosen patients are."""
  scan_ids = [one['scan_id'].decode() for one in examples]
  chosen = choose_patients(scan_ids, fraction, seed)
  return [place for place, one in enumerate(scan_ids) if one in chosen]


def _find_lacking(data, examples, places) -> str | None:
  """Returns a class that has no example at these places, if any."""
  if not data.classes:
    return None
  found = {int(examples[place]['label']) for place in places}
  missing = set(range(len(data.classes))) - found
  return data.classes[min(missing)] if missing else None
