"""The autoencoder through the same loop as pre-training."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.scans import phantom
from transvw_tf2.scans import thumbnail
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import loop
from transvw_tf2.training import reports
from transvw_tf2.training import schedules

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


def _make_thumbnails(count, seed, shape=(16, 8, 8)):
  """Bright balls at random places in air, int16 (count, x, y, z) HU."""
  rng = np.random.default_rng(seed)
  grid = np.stack(np.indices(shape), axis=-1)
  centres = rng.uniform(2, 6, (count, 1, 1, 1, 3))
  distances = np.linalg.norm(grid - centres, axis=-1)
  return np.where(distances < 2.5, 800, -900).astype(np.int16)


@pytest.fixture(name='splits', scope='module')
def _splits():
  return {
    'train': _make_thumbnails(18, seed=1),
    'validation': _make_thumbnails(6, seed=2),
  }


@pytest.fixture(name='data_dir', scope='module')
def _data_dir(splits, tmp_path_factory):
  return tiny_data.write_thumbnails(tmp_path_factory.mktemp('data'), splits)


def _train(workdir, strategy, data_dir, **settings):
  settings = {
    'task': tiny_data.make_autoencoder,
    'learning_rate': 1e-2,
  } | settings
  return loop.train(
    str(workdir), strategy, tiny_data.make_settings(data_dir, **settings)
  )


@pytest.fixture(name='run', scope='module')
def _run(tmp_path_factory, strategy, data_dir):
  workdir = tmp_path_factory.mktemp('run')
  return workdir, _train(workdir, strategy, data_dir, epochs=3)


def _mean_mse(splits, split):
  """The error of predicting the mean training thumbnail, by hand."""
  scaled = {
    name: (thumbnails.astype(np.float64) + 1000) / 2000
    for name, thumbnails in splits.items()
  }
  return np.square(scaled[split] - scaled['train'].mean(axis=0)).mean()


def test_history_has_what_is_to_be_beaten(run, splits):
  _, rows = run
  assert [row['epoch'] for row in rows] == [1, 2, 3]
  for row in rows:
    assert row['validation/loss'] == row['validation/mse'] > 0
    assert row['validation/mean_mse'] == pytest.approx(
      _mean_mse(splits, 'validation'), rel=1e-5
    )
    assert row['thumbnails_per_second'] > 0
  # 16 of 18 in each epoch.
  assert rows[0]['train/mean_mse'] == pytest.approx(
    _mean_mse(splits, 'train'), rel=0.1
  )


def test_files_of_a_run(run, splits):
  workdir, _ = run
  with open(workdir / 'model.json', encoding='utf-8') as file:
    description = json.load(file)
  assert description['task'] == 'Autoencoder'
  assert description['volume'] == 'thumbnail'
  assert description['shape'] == [16, 8, 8]
  assert description['examples'] == {'train': 18, 'validation': 6}
  assert 'words' not in description
  (events,) = os.listdir(workdir / 'tensorboard')
  pictures = [
    value
    for event in tf.compat.v1.train.summary_iterator(
      str(workdir / 'tensorboard' / events)
    )
    for value in event.summary.value
    if value.tag == 'slices'
  ]
  assert len(pictures) == 1  # picture_epochs = 3


def test_pictures_show_input_and_output(splits):
  task = tiny_data.make_autoencoder()
  batch = {'thumbnail': splits['train'][:2, ..., np.newaxis] / 1000}
  pictures = task.pictures('output', batch, 'input')
  assert pictures == {'input': batch['thumbnail'], 'output': 'output'}
  assert task.make_inputs(batch, None) is batch['thumbnail']


def test_it_learns(run):
  _, rows = run
  assert rows[-1]['train/mse'] < 0.8 * rows[0]['train/mse']


def test_resumes_exactly(run, tmp_path, strategy, data_dir):
  _train(tmp_path, strategy, data_dir, epochs=1)
  rows = _train(tmp_path, strategy, data_dir, epochs=3)
  for row, want in zip(rows, run[1], strict=True):
    for name in set(want) - {'thumbnails_per_second'}:
      assert row[name] == want[name], name
  models = [
    checkpoints.load_model(str(workdir), 'latest')[0]
    for workdir in (tmp_path, run[0])
  ]
  for one, other in zip(*(model.variables for model in models), strict=True):
    np.testing.assert_array_equal(one, other)


def test_its_encoder_is_exported(run, splits, tmp_path):
  workdir, _ = run
  path = str(tmp_path / 'encoder')
  summary = export.export_workdir(str(workdir), path, 'best')
  assert summary['task'] == 'Autoencoder'
  encoder = encoders.load(path, signatures.THUMBNAILS)
  assert encoder.shape == (16, 8, 8)
  thumbnails = splits['validation']
  model, _ = checkpoints.load_model(str(workdir))
  scaled = (thumbnails[..., np.newaxis] + np.float32(1000)) / 2000
  np.testing.assert_allclose(
    encoder.embed(thumbnails), model.embed(scaled), atol=1e-5
  )


@pytest.mark.long
@pytest.mark.parametrize('jit_compile', ['False', 'True'])
def test_two_replicas(data_dir, splits, tmp_path, jit_compile):
  bindings = (
    'unet3d.base_filters = 2',
    'unet3d.depth = 3',
    'train.batch_size = 4',
    'train.epochs = 1',
    f'train.jit_compile = {jit_compile}',
  )
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'transvw_tf2.train', '--devices=cpu:2'),
      '--gin_file=gin/runs/autoencoder_tiny.gin',
      *(f'--gin_param={binding}' for binding in bindings),
      *(f'--data={data_dir}', f'--workdir={tmp_path}'),
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert 'thumbnails/s; train loss' in done.stdout
  (row,) = reports.read_history(str(tmp_path))
  assert row['validation/mean_mse'] == pytest.approx(
    _mean_mse(splits, 'validation'), rel=1e-4
  )


def test_cubes_are_no_thumbnails(tmp_path, strategy, data_dir):
  cubes = tiny_data.write(tmp_path / 'cubes')
  with pytest.raises(
    errors.UserError, match=r"wanted also \['thumbnail'\].*index_scans"
  ):
    _train(tmp_path / 'run', strategy, cubes)
  with pytest.raises(
    errors.UserError, match=r"wanted also \['cube', 'word'\].*tfds build"
  ):
    _train(tmp_path / 'run', strategy, data_dir, task=tiny_data.make_task)
  assert os.listdir(tmp_path) == ['cubes']


def test_thumbnails_that_do_not_fit_the_network_are_one_line(
  tmp_path, strategy, data_dir
):
  task = functools.partial(tiny_data.make_autoencoder, upsampling='cubic')
  with pytest.raises(errors.UserError, match="model: upsampling is 'cubic'"):
    _train(tmp_path / 'run', strategy, data_dir, task=task)
  thumbnails = _make_thumbnails(8, seed=0, shape=(8, 8, 6))
  odd = tiny_data.write_thumbnails(
    tmp_path / 'odd', {'train': thumbnails, 'validation': thumbnails}
  )
  with pytest.raises(errors.UserError, match='do not fit the model'):
    _train(tmp_path / 'run', strategy, odd)
  assert os.listdir(tmp_path) == ['odd']


def test_batches_of_thumbnails(data_dir, splits):
  data = built_data.open_data(data_dir, built_data.THUMBNAILS)
  assert (data.volume, data.shape, data.words) == ('thumbnail', (16, 8, 8), ())
  batches = list(input_pipeline.make_dataset(data, 'validation', 4))
  assert set(batches[0]) == {'thumbnail', 'index', 'weight'}
  assert np.concatenate([one['weight'] for one in batches]).tolist() == (
    [1] * 6 + [0] * 2
  )
  found = {one.numpy().tobytes() for one in batches[0]['thumbnail']}
  scaled = (splits['validation'].astype(np.float32) + 1000) / 2000
  assert found <= {one.tobytes() for one in scaled}
  volumes = list(input_pipeline.read_volumes(data, 'train'))
  assert sorted(one.tobytes() for one in volumes) == sorted(
    one.tobytes() for one in splits['train']
  )


@pytest.mark.long
def test_held_out_scans_are_restored_5_times_better_than_by_the_mean(
  tmp_path, strategy
):
  """Without skip connections: all has to pass the bottleneck."""
  thumbnails = np.stack(
    [
      thumbnail.make_thumbnail(
        phantom.make_patient(5, index, (64, 64, 48)).hu, (32, 32, 16)
      )
      for index in range(48)
    ]
  )
  data_dir = tiny_data.write_thumbnails(
    tmp_path / 'data',
    {'train': thumbnails[:40], 'validation': thumbnails[40:]},
  )
  rows = _train(
    tmp_path / 'run',
    strategy,
    data_dir,
    task=functools.partial(tiny_data.make_autoencoder, base_filters=8),
    schedule=lambda: schedules.StepDecay(factor=0.3, epochs=20),
    epochs=80,
    batch_size=2,
    picture_epochs=80,
  )
  best = min(rows, key=lambda row: row['validation/mse'])
  assert best['validation/mean_mse'] > 5 * best['validation/mse']
