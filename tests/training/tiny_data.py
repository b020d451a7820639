"""Tiny data sets of cubes and of thumbnails, and tiny tasks."""

import functools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from transvw_tf2 import models
from transvw_tf2.perturb import random_numbers
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import loop
from transvw_tf2.training import settings as settings_lib
from transvw_tf2.training import tasks

# On an AMD EPYC with AVX512-BF16 and no AMX, TensorFlow 2.21 trains wrongly in
# bfloat16, to NaN within steps, unless TF_ENABLE_ONEDNN_OPTS=0.
_CPU_INFO = pathlib.Path('/proc/cpuinfo')  # of Linux
needs_amx = pytest.mark.skipif(
  not _CPU_INFO.exists() or 'amx_bf16' not in _CPU_INFO.read_text(),
  reason='bfloat16 was wrong on a CPU without AMX (oneDNN)',
)

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
    splits[split] = {'cube': cubes, 'word': words}
  return write_splits(folder, 'tiny_cubes', splits, features, shards)


def write_thumbnails(folder, splits: dict[str, np.ndarray]) -> str:
  """Writes int16 thumbnails (N, x, y, z) by split, as an index has them."""
  (shape,) = {thumbnails.shape[1:] for thumbnails in splits.values()}
  features = tfds.features.FeaturesDict(
    {
      'thumbnail': tfds.features.Tensor(
        shape=shape,
        dtype=np.int16,
        encoding=tfds.features.Encoding.BYTES,
      ),
      'scan_id': tfds.features.Text(),
    }
  )
  arrays = {
    split: {
      'thumbnail': thumbnails,
      'scan_id': [f'{split}.{number}' for number in range(len(thumbnails))],
    }
    for split, thumbnails in splits.items()
  }
  return write_splits(folder, 'tiny_thumbnails', arrays, features, shards=2)


def make_volume(dtype) -> tfds.features.Tensor:
  """Returns the feature of a cube or mask."""
  return tfds.features.Tensor(
    shape=CUBE_SHAPE, dtype=dtype, encoding=tfds.features.Encoding.BYTES
  )


def write_targets(folder, places=True) -> str:
  """Writes cubes with a bright box or none: label, mask, patient and place."""
  features = {
    'cube': make_volume(np.int16),
    'mask': make_volume(np.uint8),
    'label': tfds.features.ClassLabel(names=['empty', 'box']),
    'scan_id': tfds.features.Text(),
  }
  if places:
    features['place'] = tfds.features.Tensor(
      shape=(3,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
    )
  splits = {}
  for split, count, seed in (
    ('train', 24, 1),
    ('validation', 10, 2),
    ('test', 10, 3),
  ):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    mask = np.zeros((count, *CUBE_SHAPE), np.uint8)
    for one in range(count):
      x, y = rng.integers(2, 8, 2)
      mask[one, x : x + 5, y : y + 5, 2:6] = 1
    mask *= label[:, None, None, None].astype(np.uint8)
    cube = np.where(mask, 100, -800) + rng.normal(scale=40, size=mask.shape)
    splits[split] = {
      'cube': cube.astype(np.int16),
      'mask': mask,
      'label': label,
      'scan_id': [f'{split}.{one // 2 % 6}' for one in range(count)],
    }
    if places:
      splits[split]['place'] = rng.normal(scale=100, size=(count, 3))
  features = tfds.features.FeaturesDict(features)
  return write_splits(folder, 'tiny_targets', splits, features, 2)


def write_splits(folder, name, splits, features, shards) -> str:
  """Writes arrays by split and feature; returns the folder of the version."""
  builder = tfds.dataset_builders.TfDataBuilder(
    name=name,
    config='default',
    version='1.0.0',
    data_dir=str(folder),
    split_datasets={
      split: tf.data.Dataset.from_tensor_slices(arrays)
      for split, arrays in splits.items()
    },
    features=features,
    description='Volumes that a tiny network can learn.',
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

  model = functools.partial(
    models.build_visual_word_net,
    base_filters=2,
    depth=3,
    head_filters=4,
    head_units=4,
  )
  return tasks.Pretrain(**({'model': model, 'perturb': AddNoise} | settings))


def make_autoencoder(**settings) -> tasks.Autoencoder:
  """Returns the autoencoder with a tiny network."""
  settings = {
    'base_filters': 2,
    'depth': 3,
    'skip_connections': False,
  } | settings
  return tasks.Autoencoder(functools.partial(models.build_unet3d, **settings))


def prepare(task: tasks.Pretrain, words=WORDS) -> tasks.Pretrain:
  """Prepares the task for data that are not on disk."""
  task.prepare(
    built_data.Data(
      data_dir='nowhere',
      builder=None,
      features=task.features,
      shape=CUBE_SHAPE,
      words=tuple(words),
      sizes={},
    )
  )
  return task


def make_settings(data_dir: str, **settings) -> settings_lib.Settings:
  """Returns settings of a run of two epochs."""
  return settings_lib.Settings(
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


def train(workdir, strategy, data_dir, **settings) -> list[dict]:
  """Trains with `make_settings`; returns the rows of the history."""
  return loop.train(str(workdir), strategy, make_settings(data_dir, **settings))


def load_weights(workdir, which='latest') -> list[np.ndarray]:
  """Returns the weights of a checkpoint of a run."""
  model, _ = checkpoints.load_model(str(workdir), which)
  return [variable.numpy() for variable in model.variables]


def assert_equal(one, other) -> None:
  """Compares the arrays of two lists bit by bit."""
  for first, second in zip(one, other, strict=True):
    np.testing.assert_array_equal(first, second)
