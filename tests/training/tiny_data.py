"""A tiny data set of cubes, written by TFDS itself, and a tiny task."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from transvw_tf2 import models
from transvw_tf2.perturb import random_numbers
from transvw_tf2.training import loop
from transvw_tf2.training import tasks

CUBE_SHAPE = (16, 16, 8)
WORDS = ('0000', '0001', '0002')
TRAIN_CUBES = 18
VALIDATION_CUBES = 7

# The same as gin bindings, for runs in processes of their own.
GIN = (
  'visual_word_net.base_filters = 2',
  'visual_word_net.depth = 3',
  'visual_word_net.head_filters = 4',
  'visual_word_net.head_units = 4',
  'train.shuffle_buffer = 8',
)


def make_cubes(count: int, seed: int):
  """Returns int16 cubes (count, x, y, z) in HU and their words."""
  rng = np.random.default_rng(seed)
  words = np.arange(count) % len(WORDS)
  x = np.linspace(-1, 1, CUBE_SHAPE[0])[:, np.newaxis, np.newaxis]
  slopes = np.array([-900.0, 0.0, 900.0])[words][:, None, None, None]
  cubes = slopes * x + rng.normal(scale=30, size=(count, *CUBE_SHAPE))
  return np.clip(np.rint(cubes), -1000, 1000).astype(np.int16), words


def write(folder, shards: int = 2) -> str:
  """Writes the data set below a folder; returns the folder of its version."""
  features = tfds.features.FeaturesDict(
    {
      'cube': tfds.features.Tensor(
        shape=CUBE_SHAPE,
        dtype=np.int16,
        encoding=tfds.features.Encoding.BYTES,
      ),
      'word': tfds.features.ClassLabel(names=list(WORDS)),
    }
  )
  splits = {}
  for split, count, seed in (
    ('train', TRAIN_CUBES, 1),
    ('validation', VALIDATION_CUBES, 2),
  ):
    cubes, words = make_cubes(count, seed)
    splits[split] = tf.data.Dataset.from_tensor_slices(
      {'cube': cubes, 'word': words}
    )
  builder = tfds.dataset_builders.TfDataBuilder(
    name='tiny_cubes',
    config='default',
    version='1.0.0',
    data_dir=str(folder),
    split_datasets=splits,
    features=features,
    description='Cubes of three words that a tiny network can learn.',
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=shards)
  )
  return str(builder.data_path)


class AddNoise(keras.layers.Layer):
  """Stands in for Perturb, which takes XLA long to compile."""

  def call(self, cubes, seeds):
    noise = random_numbers.draw_normal(
      seeds, random_numbers.Stream.FILL, tuple(cubes.shape[1:])
    )
    return cubes + 0.2 * noise


def make_task(**settings) -> tasks.Pretrain:
  """Returns the task with a tiny network and a simple perturbation."""

  def model(num_words, synchronized_batch_norm):
    return models.build_visual_word_net(
      num_words,
      base_filters=2,
      depth=3,
      head_filters=4,
      head_units=4,
      synchronized_batch_norm=synchronized_batch_norm,
    )

  return tasks.Pretrain(**({'model': model, 'perturb': AddNoise} | settings))


def make_settings(data_dir: str, **settings) -> loop.Settings:
  """Returns settings of a run of two epochs."""
  return loop.Settings(
    **(
      {
        'data_dir': data_dir,
        'task': make_task,
        'batch_size': 4,
        'epochs': 2,
        'shuffle_buffer': 8,
        'jit_compile': False,
        'picture_epochs': 3,
      }
      | settings
    )
  )
