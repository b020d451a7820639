"""Training on a fraction of the labels: those of some of the patients.

Nested for one seed: the patients of a tenth are among those of a half.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
import tensorflow as tf

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
  if 'scan_id' not in data.builder.info.features:
    raise errors.UserError(
      f'train.label_fraction is {fraction}, but {data.data_dir} has no feature'
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
  chosen = choose_patients(
    [row['scan_id'].decode() for row in rows], fraction, seed
  )
  places = [
    place for place, row in enumerate(rows) if row['scan_id'].decode() in chosen
  ]
  if labelled:
    _check_classes(data, [rows[place]['label'] for place in places], fraction)
  return dataclasses.replace(
    data,
    records={schema.TRAIN: tf.gather(records, places)},
    selected={schema.TRAIN: len(places)},
  )


def _check_classes(data, labels, fraction) -> None:
  counts = np.bincount(labels, minlength=len(data.classes))
  for name, count in zip(data.classes, counts, strict=True):
    if not count:
      raise errors.UserError(
        f'train.label_fraction {fraction} leaves no example of class {name!r}'
        f' in {data.data_dir}: raise it, or change train.seed'
      )
