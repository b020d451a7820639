"""Runs a model over some validation examples, to look at what it does."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from transvw_tf2 import schema
from transvw_tf2.training import built_data
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import step as step_lib


class Inspected(NamedTuple):
  """What N examples look like.

  Attributes:
    pictures: float32 (N, X, Y, Z, 1) by title.
    embeddings: float32 (N, D), or None.
    labels: the names of the examples.
  """

  pictures: dict[str, np.ndarray]
  embeddings: np.ndarray | None
  labels: list[str]


def inspect(
  data: built_data.Data,
  steps: step_lib.Steps,
  task,
  seed: tf.Tensor,
  *,
  at_a_time: int,
  most: int,
) -> Inspected:
  """Inspects the first validation examples.

  Args:
    data: of the run.
    steps: of the run.
    task: see tasks.Task.
    seed: int32 (2,), of validation.
    at_a_time: examples in a batch.
    most: examples at most.
  """
  wanted = min(data.size(schema.VALIDATION), most)
  batches = -(-wanted // at_a_time)
  dataset = input_pipeline.make_dataset(data, schema.VALIDATION, at_a_time)
  pictures, embeddings, labels = [], [], []
  for batch in dataset.take(batches):
    of_batch, embedding = steps.inspect(batch, seed)
    pictures.append(of_batch)
    embeddings.append(embedding)
    labels += task.labels(batch)
  return Inspected(
    {
      title: np.concatenate([one[title] for one in pictures])[:wanted]
      for title in pictures[0]
    },
    None if embeddings[0] is None else np.concatenate(embeddings)[:wanted],
    labels[:wanted],
  )
