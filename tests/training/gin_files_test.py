"""Gin files: looked up in two places, and strict."""

import os

import gin
import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2.training import gin_files
from transvw_tf2.training import settings as settings_lib
from transvw_tf2.training import tasks

_NAME = 'wanted a name without quotes, such as @'


@pytest.fixture(autouse=True)
def _clean():
  yield
  gin.clear_config()


@pytest.mark.parametrize('run', ['pretrain', 'quickstart'])
def test_published_runs_parse_from_anywhere(run, tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  gin_files.parse([f'gin/runs/{run}.gin'], ['train.seed = 7'])
  # Not a line for each place where gin looked first.
  assert not caplog.records
  settings = settings_lib.Settings()
  assert settings.seed == 7
  assert isinstance(settings.task(), tasks.Pretrain)
  assert settings.schedule().patience.patience == 20


@pytest.mark.parametrize('run', ['autoencoder', 'autoencoder_tiny'])
@pytest.mark.parametrize('upsampling', ['nearest', 'transposed'])
@pytest.mark.parametrize('skip_connections', [False, True])
def test_autoencoders_parse(run, upsampling, skip_connections):
  gin_files.parse(
    [f'gin/runs/{run}.gin'],
    [
      f'unet3d.upsampling = {upsampling!r}',
      f'unet3d.fused_upsampling = {upsampling == "nearest"}',
      f'unet3d.skip_connections = {skip_connections}',
    ],
  )
  task = settings_lib.Settings().task()
  assert isinstance(task, tasks.Autoencoder)
  config = task.build_model().get_config()
  assert config['base_filters'] == {'autoencoder': 32}.get(run, 4)
  assert config['upsampling'] == upsampling
  assert config['skip_connections'] is skip_connections


def test_the_published_autoencoder_is_the_v_net():
  gin_files.parse(['gin/runs/autoencoder.gin'])
  settings = settings_lib.Settings()
  assert (settings.batch_size, settings.learning_rate) == (8, 1e-3)
  model = settings.task().build_model()
  model.build((None, 128, 128, 64, 1))
  weights = model.trainable_weights
  assert sum(np.prod(one.shape) for one in weights) == 13_997_825


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.makedirs('gin/runs')
  with open('gin/runs/pretrain.gin', 'w', encoding='utf-8') as file:
    file.write('train.epochs = 3')
  gin_files.parse(['gin/runs/pretrain.gin'])
  assert settings_lib.Settings().epochs == 3


@pytest.mark.parametrize(
  ('parameter', 'named'),
  [
    ('nothing.x = 1', 'nothing'),
    ('train.no_such_setting = 1', 'no_such_setting'),
    ('train.seed =', 'train.seed ='),
    ('train.task = @NoTask', 'NoTask'),
  ],
)
def test_unknown_names_are_named(parameter, named):
  with pytest.raises(errors.UserError, match='gin, in') as raised:
    gin_files.parse([], [parameter])
  assert named in str(raised.value)


@pytest.mark.parametrize(
  ('parameter', 'better'),
  [
    ('train.start_from = WORKDIR', 'train.start_from = "WORKDIR"'),
    ('train.start_from=/runs/words 1', 'train.start_from = "/runs/words 1"'),
    ('train.precision = bfloat16', 'train.precision = "bfloat16"'),
  ],
)
def test_text_without_quotes_gets_them(parameter, better):
  with pytest.raises(errors.UserError) as raised:
    gin_files.parse([], ['train.seed = 3', parameter, 'train.cache = None'])
  assert str(raised.value).endswith(f"; text needs quotes: '{better}'")
  assert 'object at 0x' not in str(raised.value)


@pytest.mark.parametrize(
  'parameter', ['train.seed =', "train.cache = 'a", 'train.task = @NoTask']
)
def test_other_mistakes_are_not_called_text(parameter):
  with pytest.raises(errors.UserError) as raised:
    gin_files.parse([], [parameter])
  assert 'quotes' not in str(raised.value)


@pytest.mark.parametrize('run', ['pretrain_from_stage', 'linear_probe'])
def test_a_run_without_a_start_says_how_to_give_one(run):
  with pytest.raises(errors.UserError) as raised:
    gin_files.parse([f'gin/runs/{run}.gin'])
  line = 'Add --gin_param \'train.start_from = "RUN"\'.'
  assert str(raised.value).endswith(line)


@pytest.mark.parametrize(
  ('parameter', 'line'),
  [
    ('batch_size = "abc"', "batch_size is 'abc', wanted a whole number"),
    ('epochs = 2.5', 'epochs is 2.5, wanted a whole number'),
    ('seed = True', 'seed is True, wanted a whole number'),
    ('learning_rate = "x"', "learning_rate is 'x', wanted a number"),
    (
      'batch_norm_momentum = "x"',
      "batch_norm_momentum is 'x', wanted a number or None",
    ),
    (
      'inputs_in_pipeline = 1',
      'inputs_in_pipeline is 1, wanted True or False',
    ),
    ('start_from = 3', 'start_from is 3, wanted text in quotes'),
    ('task = "Pretrain"', f"task is 'Pretrain', {_NAME}Pretrain"),
    ('schedule = None', f'schedule is None, {_NAME}ReduceOnPlateau'),
    ('early_stopping = 1', f'early_stopping is 1, {_NAME}EarlyStopping'),
    ('freezing = "Freezing"', f"freezing is 'Freezing', {_NAME}Freezing"),
  ],
)
def test_values_of_a_wrong_kind_are_named(parameter, line):
  gin_files.parse([], [f'train.{parameter}'])
  with pytest.raises(errors.UserError) as raised:
    settings_lib.Settings()
  assert str(raised.value).startswith(f'train.{line}\n')


def test_values_of_the_right_kind_are_taken():
  gin_files.parse(
    [],
    [
      'train.learning_rate = 1',
      'train.batch_norm_momentum = None',
      'train.synchronized_batch_norm = None',
      'train.label_fraction = 1',
      'train.task = @Restore',
    ],
  )
  assert isinstance(settings_lib.Settings().task(), tasks.Restore)


def test_bindings_that_nothing_asked_for_are_found():
  used = [
    *('train.seed = 3', 'training.train.task = @Restore'),
    *('FILTERS = 2', 'unet3d.base_filters = %FILTERS'),
    *('SEED/macro.value = 3', '# not a.b', 'import os.path'),
  ]
  unused = [
    *('visual_word_net.base_filters = 4', 'CosineDecay.epochs=10'),
    'train.epochs = 3\nStepDecay.epochs = 2',
  ]
  gin_files.parse([], [*used, *unused])
  settings_lib.Settings().task().build_model()
  assert gin_files.find_unused([*used, *unused]) == unused


@pytest.mark.parametrize(
  ('text', 'line'),
  [('import no_such_module', 'No module named'), ('include "a.gin"', 'recurs')],
)
def test_a_file_that_cannot_be_read_is_one_line(
  tmp_path, monkeypatch, text, line
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.gin').write_text(text)
  with pytest.raises(errors.UserError, match=f'gin, in a.gin: .*{line}'):
    gin_files.parse(['a.gin'])


def test_missing_file_is_one_line():
  with pytest.raises(errors.UserError, match=r'no\.gin does not exist'):
    gin_files.parse(['no.gin'])
