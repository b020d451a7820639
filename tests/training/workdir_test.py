"""The files of a run: what is in a workdir, and which workdirs are refused."""

import functools
import os
import shutil

import gin
import numpy as np
import pytest
import tensorflow as tf

from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import models
from transvw_tf2 import output_lock
from transvw_tf2.training import built_data
from transvw_tf2.training import freezing
from transvw_tf2.training import gin_files
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import schedules
from transvw_tf2.training import tasks


def test_files_of_a_run(run):
  workdir, _ = run
  assert sorted(os.listdir(workdir)) == [
    'checkpoints',
    'history.csv',
    'model.json',
    'operative_config.gin',
    'summary.json',
    'tensorboard',
  ]
  (events,) = (workdir / 'tensorboard').glob('events.*')
  tags = set()
  for event in tf.compat.v1.train.summary_iterator(str(events)):
    tags |= {value.tag for value in event.summary.value}
  assert {'train/loss', 'validation/mse', 'slices', 'confusion'} <= tags


def test_the_projector_shows_validation_cubes_and_their_words(run, data_dir):
  workdir, _ = run
  (folder,) = (workdir / 'tensorboard' / 'plugins').iterdir()
  data = built_data.open_data(data_dir)
  (batch,) = input_pipeline.make_dataset(
    data, 'validation', tiny_data.VALIDATION_CUBES
  )
  words = [tiny_data.WORDS[word] for word in batch['word']]
  assert (folder / 'words.tsv').read_text().splitlines() == words
  embeddings = np.loadtxt(folder / 'embeddings.tsv')
  assert embeddings.shape == (tiny_data.VALIDATION_CUBES, 16)


def test_a_finished_run_stays_as_it_is(run, strategy, data_dir):
  workdir, rows = run
  before = tiny_data.load_weights(workdir)
  assert tiny_data.train(workdir, strategy, data_dir, epochs=3) == rows
  tiny_data.assert_equal(tiny_data.load_weights(workdir), before)


def test_a_cut_checkpoint_falls_back_to_the_one_before(
  run, tmp_path, strategy, data_dir, caplog
):
  tiny_data.train(tmp_path, strategy, data_dir, epochs=2)
  paths = tf.train.get_checkpoint_state(
    str(tmp_path / 'checkpoints' / 'latest')
  ).all_model_checkpoint_paths
  with open(paths[-1] + '.data-00000-of-00001', 'r+b') as file:
    file.truncate(100)
  tiny_data.train(tmp_path, strategy, data_dir, epochs=3)
  assert 'trying the one before' in caplog.text
  tiny_data.assert_equal(
    tiny_data.load_weights(tmp_path), tiny_data.load_weights(run[0])
  )


def test_another_run_in_the_workdir_is_refused(run, strategy, data_dir):
  workdir, _ = run
  before = tiny_data.load_weights(workdir)
  for settings, named in (
    ({'seed': 5}, 'another seed: 1, now 5'),
    ({'batch_size': 6}, 'another batch_size: 4, now 6'),
    ({'learning_rate': 0.5}, 'another learning_rate: .*, now 0.5'),
    (
      {'schedule': schedules.StepDecay},
      'another schedule: "ReduceOnPlateau", now "StepDecay"',
    ),
    ({'start_from': str(workdir)}, 'another start_from: "", now "'),
    (
      {'task': functools.partial(tiny_data.make_task, word_weight=1.0)},
      r'another loss_weights: \[1.0, 0.01\], now \[1.0, 1.0\]',
    ),
    (
      {'task': functools.partial(tiny_data.make_task, crop=(8, 8, 8))},
      r'another crop: null, now \[8, 8, 8\]',
    ),
    (
      {
        'task': functools.partial(
          tiny_data.make_task, perturb=tasks.make_perturb
        )
      },
      r'another perturbation: .*, now \{"elastic_probability": 1.0',
    ),
  ):
    with pytest.raises(errors.UserError, match=named):
      tiny_data.train(workdir, strategy, data_dir, epochs=4, **settings)
  tiny_data.assert_equal(tiny_data.load_weights(workdir), before)


def test_a_start_that_was_refused_can_be_mended(
  run, tmp_path, strategy, data_dir
):
  train = functools.partial(
    tiny_data.train, tmp_path / 'run', strategy, data_dir, epochs=1
  )
  with pytest.raises(errors.UserError, match='does not exist'):
    train(start_from=str(tmp_path / 'none'))
  assert not (tmp_path / 'run').exists()
  other = functools.partial(
    models.build_visual_word_net, base_filters=4, depth=3
  )
  with pytest.raises(errors.UserError, match='set the base_filters and depth'):
    train(
      start_from=str(run[0]),
      task=functools.partial(tiny_data.make_task, model=other),
    )
  assert len(train(start_from=str(run[0]))) == 1


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    ({'cache': 'disk'}, "train.cache is 'disk', wanted"),
    ({'interleave': 0}, 'train.interleave is 0, wanted'),
    ({'shuffle_buffer': 0}, 'train.shuffle_buffer is 0, wanted'),
    (
      {'freezing': functools.partial(freezing.Freezing, 'none')},
      r"Freezing.parts has \['none'\], wanted some of",
    ),
    (
      {'freezing': functools.partial(freezing.Freezing, unfreeze_epochs='a')},
      'train.freezing, .* cannot be made',
    ),
    (
      {'task': functools.partial(tiny_data.make_task, crop=8)},
      'crop is 8, wanted three whole numbers',
    ),
    (
      {'task': functools.partial(tiny_data.make_task, word_weight='a')},
      'train.task, .* cannot be made .* change its settings',
    ),
    (
      {'task': functools.partial(tasks.Pretrain, models.build_unet3d)},
      r'model: .* unexpected keyword argument .num_words.',
    ),
    (
      {
        'task': functools.partial(
          tasks.Pretrain,
          functools.partial(models.build_word_classifier, base_filters=1),
        )
      },
      'Pretrain needs a network that gives restored and words, not',
    ),
  ],
)
def test_what_is_refused_leaves_nothing(
  tmp_path, strategy, data_dir, settings, line
):
  with pytest.raises(errors.UserError, match=line):
    tiny_data.train(tmp_path / 'run', strategy, data_dir, **settings)
  assert not os.listdir(tmp_path)


def test_who_is_refused_removes_nothing_of_another_run(
  tmp_path, strategy, data_dir, monkeypatch
):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'model.json').write_text('{}')
  exists = os.path.exists
  # As if the other run had made it just now.
  monkeypatch.setattr(
    os.path, 'exists', lambda path: path != str(workdir) and exists(path)
  )
  with (
    output_lock.hold(str(workdir)),
    pytest.raises(errors.UserError, match='another run is writing to'),
  ):
    tiny_data.train(workdir, strategy, data_dir)
  assert os.listdir(workdir) == ['model.json']


def test_a_setting_that_is_missing_is_one_line(tmp_path, strategy, data_dir):
  with pytest.raises(errors.UserError, match=r'CosineDecay.*epochs') as raised:
    tiny_data.train(
      tmp_path / 'run', strategy, data_dir, schedule=schedules.CosineDecay
    )
  assert str(raised.value).endswith(': change its settings')


def test_a_workdir_in_use_is_refused(run, strategy, data_dir):
  workdir, rows = run
  with (
    output_lock.hold(str(workdir)),
    pytest.raises(errors.UserError, match='another run is writing to'),
  ):
    tiny_data.train(workdir, strategy, data_dir, epochs=3)
  assert tiny_data.train(workdir, strategy, data_dir, epochs=3) == rows


def test_what_a_run_left_that_was_killed_while_it_saved_is_removed(
  run, tmp_path, strategy, data_dir
):
  """Hundreds of megabytes each with the full network."""
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  latest, best = (workdir / 'checkpoints' / one for one in ('latest', 'best'))
  before = [sorted(os.listdir(folder)) for folder in (latest, best)]
  (latest / 'ckpt-99_temp').mkdir()
  (latest / 'ckpt-99_temp' / 'part-00000-of-00001.index').write_text('half')
  (best / 'ckpt-99.data-00000-of-00001').write_text('half')
  tiny_data.train(workdir, strategy, data_dir, epochs=3)
  assert [sorted(os.listdir(folder)) for folder in (latest, best)] == before


@pytest.mark.parametrize('cut', [False, True])
def test_checkpoints_without_their_list_are_gone_on_from(
  run, tmp_path, strategy, data_dir, cut
):
  """Not copied with them, or empty after the power failed."""
  workdir = tmp_path / 'run'
  shutil.copytree(run[0], workdir)
  for which in ('latest', 'best'):
    path = workdir / 'checkpoints' / which / 'checkpoint'
    if cut:
      path.write_text('')
    else:
      path.unlink()
  before = tiny_data.load_weights(run[0])
  tiny_data.assert_equal(tiny_data.load_weights(workdir), before)
  rows = tiny_data.train(workdir, strategy, data_dir, epochs=4)
  assert rows[:3] == run[1]
  latest = workdir / 'checkpoints' / 'latest'
  # Old ones are still removed.
  assert len(list(latest.glob('*.index'))) == len(
    list((run[0] / 'checkpoints' / 'latest').glob('*.index'))
  )


def test_another_task_or_other_words_in_the_workdir_are_refused(
  run, tmp_path, strategy, data_dir, monkeypatch
):
  workdir, _ = run
  before = tiny_data.load_weights(workdir)
  restore = functools.partial(
    tasks.Restore,
    model=functools.partial(models.build_unet3d, base_filters=2, depth=3),
    perturb=tiny_data.AddNoise,
  )
  with pytest.raises(errors.UserError, match='another task: "Pretrain", now'):
    tiny_data.train(workdir, strategy, data_dir, epochs=4, task=restore)
  monkeypatch.setattr(tiny_data, 'WORDS', ('0000', '0001', '0002', '0003'))
  monkeypatch.setattr(
    tiny_data, 'make_cubes', lambda count, seed: _cubes_of(count)
  )
  with pytest.raises(errors.UserError, match='another words: '):
    tiny_data.train(workdir, strategy, tiny_data.write(tmp_path), epochs=4)
  tiny_data.assert_equal(tiny_data.load_weights(workdir), before)


def _cubes_of(count):
  cubes = np.zeros((count, *tiny_data.CUBE_SHAPE), np.int16)
  return cubes, np.arange(count) % 4


def test_the_written_configuration_is_that_in_force(
  tmp_path, strategy, data_dir
):
  gin_files.parse(
    [], ['CosineDecay.epochs = 7', 'EarlyStopping.patience = 9'], forget=True
  )
  try:
    tiny_data.train(
      tmp_path, strategy, data_dir, epochs=1, schedule=schedules.CosineDecay
    )
  finally:
    gin.clear_config()
  config = (tmp_path / 'operative_config.gin').read_text()
  assert 'CosineDecay.epochs = 7' in config
  assert 'EarlyStopping.patience = 9' in config
  # A command that does not fit leaves it.
  with pytest.raises(errors.UserError, match='another schedule'):
    tiny_data.train(tmp_path, strategy, data_dir, epochs=2)
  assert (tmp_path / 'operative_config.gin').read_text() == config


@pytest.mark.parametrize('sign', '*?[')
def test_a_workdir_that_is_a_pattern_is_refused(
  tmp_path, strategy, data_dir, sign
):
  with pytest.raises(errors.UserError, match='and Beam take for a pattern'):
    tiny_data.train(tmp_path / f'run{sign}1]', strategy, data_dir, epochs=1)
  assert not os.listdir(tmp_path)


def test_unwritable_workdir_is_one_line(tmp_path, strategy, data_dir):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot be written'):
    tiny_data.train(tmp_path / 'file' / 'run', strategy, data_dir)
