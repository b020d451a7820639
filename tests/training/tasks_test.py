"""The pre-training task: losses by hand, and what it refuses."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2.training import target_tasks
from transvw_tf2.training import tasks


def _outputs(seed=0):
  rng = np.random.default_rng(seed)
  words = rng.random((4, 3)).astype(np.float32)
  return {
    'restored': rng.random((4, 4, 4, 2, 1)).astype(np.float32),
    'words': words / words.sum(axis=1, keepdims=True),
  }


def test_losses_equal_numpy():
  outputs, inputs = _outputs(), _outputs(2)['restored']
  cube, word = _outputs(1)['restored'], np.array([0, 2, 1, 1])
  batch = {'cube': cube, 'word': tf.constant(word, tf.int32)}
  losses = tiny_data.make_task(word_weight=0.25).losses(outputs, batch, inputs)
  mse = np.square(outputs['restored'] - cube).mean((1, 2, 3, 4))
  entropy = -np.log(outputs['words'][np.arange(4), word])
  want = {
    'loss': mse + 0.25 * entropy,
    'mse': mse,
    'cross_entropy': entropy,
    'accuracy': outputs['words'].argmax(1) == word,
    'perturbed_mse': np.square(inputs - cube).mean((1, 2, 3, 4)),
  }
  assert set(losses) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(losses[name], value, rtol=1e-5)


def test_losses_of_the_stages_equal_numpy():
  outputs, inputs = _outputs(), _outputs(2)['restored']
  cube, word = _outputs(1)['restored'], np.array([0, 2, 1, 1])
  batch = {'cube': cube, 'word': tf.constant(word, tf.int32)}
  mse = np.square(outputs['restored'] - cube).mean((1, 2, 3, 4))
  losses = tasks.Restore().losses(outputs['restored'], batch, inputs)
  np.testing.assert_allclose(losses['loss'], mse, rtol=1e-5)
  entropy = -np.log(outputs['words'][np.arange(4), word])
  losses = tasks.NameWords().losses(outputs, batch, inputs)
  np.testing.assert_allclose(losses['loss'], entropy, rtol=1e-5)


def test_cross_entropy_of_a_certain_mistake_is_finite():
  outputs = _outputs() | {'words': np.eye(3, dtype=np.float32)[[0, 0, 0, 0]]}
  batch = {'cube': outputs['restored'], 'word': tf.constant([1, 1, 1, 1])}
  losses = tiny_data.make_task().losses(outputs, batch, outputs['restored'])
  assert np.isfinite(losses['loss']).all()


def test_model_has_the_words_of_the_data():
  task = tiny_data.prepare(tiny_data.make_task(), words='abcdefg')
  assert task.describe()['words'] == tuple('abcdefg')
  model = task.build_model(synchronized_batch_norm=True)
  assert isinstance(model, keras.Model)
  assert model.num_words == 7
  assert (
    model.synchronized_batch_norm
    if hasattr(model, 'synchronized_batch_norm')
    else model.get_config()['synchronized_batch_norm']
  )


def test_what_the_loss_depends_on_is_described():
  perturb = functools.partial(tasks.make_perturb, elastic_probability=0.5)
  task = tasks.Restore(perturb=perturb, crop=(8, 8, 4))
  found = task.describe()
  assert found['crop'] == (8, 8, 4)
  assert found['perturbation']['elastic_probability'] == 0.5
  assert not {'name', 'dtype'} & set(found['perturbation'])
  assert 'loss_weights' not in found
  task = tiny_data.prepare(tiny_data.make_task(word_weight=0.5))
  assert task.describe()['loss_weights'] == [1.0, 0.5]


@pytest.mark.parametrize('weights', [(-1.0, 1.0), (0.0, 0.0)])
def test_refuses_weights(weights):
  with pytest.raises(errors.UserError, match='restoration_weight is'):
    tasks.Pretrain(restoration_weight=weights[0], word_weight=weights[1])


def test_settings_of_the_perturbation_are_checked():
  with pytest.raises(errors.UserError, match='perturb: '):
    tasks.make_perturb(no_such_setting=1)


def test_a_crop_is_a_random_part_of_each_cube():
  crop, count = (8, 16, 8), 256
  task = tiny_data.prepare(tiny_data.make_task(crop=crop))
  # Each voxel holds its own place.
  places = np.arange(np.prod(tiny_data.CUBE_SHAPE), dtype=np.float32)
  cube = np.tile(
    places.reshape(1, *tiny_data.CUBE_SHAPE, 1), (count, 1, 1, 1, 1)
  )
  seeds = tf.stack([tf.range(count), tf.range(count)], axis=1)
  batch = {'cube': tf.constant(cube), 'word': tf.range(count)}
  changed = task.crop(batch, seeds)
  np.testing.assert_array_equal(changed['word'], batch['word'])
  corners = np.zeros(9, int)
  for part in changed['cube'].numpy():
    x, y, z = np.unravel_index(int(part[0, 0, 0, 0]), tiny_data.CUBE_SHAPE)
    assert (y, z) == (0, 0)
    np.testing.assert_array_equal(part, cube[0, x : x + 8])
    corners[x] += 1
  # 28 of each of the 9 corners expected, sd 5.
  assert corners.min() >= 12 and corners.max() <= 46
  again = task.crop(batch, seeds)['cube']
  np.testing.assert_array_equal(changed['cube'], again)


@pytest.mark.parametrize('crop', [(24, 16, 8), (8.0, 16, 8), (8, 8), (0, 8, 8)])
def test_refuses_a_crop(crop):
  with pytest.raises(errors.UserError, match='crop is'):
    tiny_data.prepare(tiny_data.make_task(crop=crop))


@pytest.mark.parametrize(
  'task', [tasks.Restore, tasks.Autoencoder, target_tasks.Segmentation]
)
def test_more_than_one_channel_out_is_refused(task):
  def make(channels):
    return task(
      functools.partial(
        models.build_unet3d, base_filters=2, output_channels=channels
      )
    ).build_model()

  assert make(1).output_channels == 1
  with pytest.raises(errors.UserError, match='2 channels out, wanted 1'):
    make(2)
