"""Flags of settings and what is left for Beam."""

import dataclasses

from absl import flags
from apache_beam.options import pipeline_options
import pytest

from beam_jobs import builders
from beam_jobs import common_flags
from transvw_tf2 import errors
from transvw_tf2.discovery import settings as settings_lib


def test_beam_options_take_both_spellings():
  options = common_flags.beam_options(
    ['--', '--runner', 'FnApiRunner', '--direct_num_workers=2', '--streaming']
  )
  standard = options.view_as(pipeline_options.StandardOptions)
  assert standard.runner == 'FnApiRunner'
  assert standard.streaming is True
  direct = options.view_as(pipeline_options.DirectOptions)
  assert direct.direct_num_workers == 2


def test_beam_options_do_not_take_the_command_line_of_the_process(monkeypatch):
  monkeypatch.setattr('sys.argv', ['job', '--runner=NoSuchRunner'])
  options = common_flags.beam_options([])
  assert options.view_as(pipeline_options.StandardOptions).runner is None


@pytest.mark.parametrize(
  ('arguments', 'name'),
  [
    (['--wrods=3'], '--wrods'),
    (['--wrods', '3'], '--wrods'),
    (['--runner=FnApiRunner', '--nostrcit'], '--nostrcit'),
  ],
)
def test_unknown_flags_are_named(arguments, name):
  with pytest.raises(errors.UserError, match=f'unknown flag {name}: '):
    common_flags.beam_options(arguments)


@pytest.mark.parametrize(
  'arguments', [['False'], ['--runner=FnApiRunner', 'False'], ['-x']]
)
def test_stray_arguments_are_named(arguments):
  # `--strict False` leaves such a word behind and would mean --strict.
  with pytest.raises(
    errors.UserError, match=f'unexpected argument {arguments[-1]};'
  ):
    common_flags.beam_options(arguments)


def test_settings_flags_have_the_fields_and_defaults(monkeypatch):
  values = flags.FlagValues()
  for kind in ('DEFINE_integer', 'DEFINE_float', 'DEFINE_string'):
    define = getattr(flags, kind)
    monkeypatch.setattr(
      flags,
      kind,
      lambda *args, define=define: define(*args, flag_values=values),
    )
  common_flags.define_settings()
  values(['job'])
  assert common_flags.settings_from_flags(values) == settings_lib.Settings()
  names = {field.name for field in dataclasses.fields(settings_lib.Settings)}
  assert names <= set(values)
  values(['job', '--words=3', '--min_distance=2.5', '--frame=lung'])
  settings = common_flags.settings_from_flags(values)
  assert (settings.words, settings.min_distance) == (3, 2.5)
  assert settings.frame == 'lung'


@pytest.mark.parametrize(
  ('name', 'arguments'),
  [
    ('discover_words', ('scans', 's3://b/out', settings_lib.Settings())),
    ('index_scans', ('scans', 's3://b/out')),
    ('describe_scans', ('index', 'model', 's3://b/out')),
    ('embed_scans', ('scans', 'model', 's3://b/out')),
  ],
)
def test_an_output_in_a_store_is_refused(
  import_main, tmp_path, monkeypatch, name, arguments
):
  monkeypatch.chdir(tmp_path)
  job = import_main(f'beam_jobs.{name}')
  with pytest.raises(errors.UserError, match=r'--output s3://b/out is an addr'):
    job.run(*arguments)
  # No folder `s3:` either.
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['out[1]', 'out*', 'out?'])
def test_a_path_that_is_a_pattern_is_refused(tmp_path, name):
  for check in (common_flags.check_output, builders.local_folder):
    with pytest.raises(errors.UserError, match='Beam take for a pattern'):
      check(str(tmp_path / name))


def test_a_data_set_in_a_store_is_refused(tmp_path):
  assert builders.local_folder(tmp_path) == str(tmp_path)
  with pytest.raises(errors.UserError, match=r'gs://b/out is an address'):
    builders.local_folder('gs://b/out')
