"""Writes the records of a TFDS data set so that every run gives the same."""

import tensorflow as tf
import tensorflow_datasets as tfds


class DeterministicWriter(tfds.core.writer.ExampleWriter):
  """Writes each tf.train.Example with its features sorted by name.

  TFDS serialises the map of features in an order that differs between
  processes, so that stock shards differ between any two runs.
  """

  def write(self, path, examples):
    return super().write(path, ((key, _sort(value)) for key, value in examples))


def _sort(record: bytes) -> bytes:
  example = tf.train.Example.FromString(record)
  return example.SerializeToString(deterministic=True)
