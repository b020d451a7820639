"""The job, in this process and from the outside."""

import os
import subprocess
import sys
from unittest import mock

from absl import flags
from absl.testing import flagsaver
import pytest

from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_FILES = [
  *('counters.json', 'descriptors.npz', 'instances.csv', 'rejected.csv'),
  'vocabulary.json',
]
_TWO_PROCESSES = (
  '--runner=FnApiRunner',
  '--direct_num_workers=2',
  '--direct_running_mode=multi_processing',
)
_SETTINGS = {'words': 2, 'xy_border': 4, 'z_border': 4, 'min_distance': 1.0}


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'))


@pytest.fixture
def job(import_main):
  return import_main('beam_jobs.discover_words')


def _run(*arguments, **named):
  options = [f'--{name}={value}' for name, value in named.items()]
  return subprocess.run(
    [sys.executable, '-m', 'beam_jobs.discover_words', *options, *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )


def _read(folder):
  return {
    name: open(os.path.join(folder, name), 'rb').read()
    for name in sorted(os.listdir(folder))
  }


@pytest.mark.parametrize(
  ('wanted', 'message'),
  [
    ({'measure': True}, '--quality measures words'),
    ({'extend': 'vocabulary.json'}, '--extend adds words'),
  ],
)
def test_what_needs_words_is_refused_without(job, tmp_path, wanted, message):
  with pytest.raises(errors.UserError, match=message):
    job.run(
      'scans',
      str(tmp_path / 'out'),
      settings_lib.Settings(),
      descriptors_only=True,
      **wanted,
    )


def test_the_job_writes_a_vocabulary(job, scans, tmp_path, capsys):
  output = str(tmp_path / 'vocabulary')
  with flagsaver.flagsaver(scans=scans, output=output, **_SETTINGS):
    job.main(['discover_words'])
  first, *lines = capsys.readouterr().out.splitlines()
  assert first.startswith('plan: ')
  assert lines == [
    'scans: 6 read, 0 rejected',
    'words: 2, cubes: 28',  # 2 words in 4 patients, 3 times, and in 2
    'note: 4 to 4 train patients per word of 200 wanted: there are 4 train'
    ' scans, and those too small for a cube are passed over',
    'note: 2 to 2 validation patients per word of 30 wanted: there are 2'
    ' validation scans, and those too small for a cube are passed over',
    f'vocabulary: {output}',
  ]
  assert os.listdir(tmp_path) == ['vocabulary']
  assert sorted(os.listdir(output)) == _FILES
  assert vocabulary.read_vocabulary(output).settings == settings_lib.Settings(
    **_SETTINGS
  )


def test_the_job_measures_the_words_where_asked(job, scans, tmp_path, capsys):
  output = str(tmp_path / 'vocabulary')
  with flagsaver.flagsaver(
    scans=scans, output=output, quality=True, **_SETTINGS
  ):
    job.main(['discover_words'])
  # 2 words in 4 training and 2 validation patients.
  line = capsys.readouterr().out.splitlines()[-2]
  assert line.startswith('quality of 12 cubes: similarity ')
  assert sorted(os.listdir(output)) == sorted([*_FILES, 'quality.json'])
  assert quality.read_quality(output).overall.cubes == 12


def test_the_job_extends_a_vocabulary(job, scans, tmp_path, capsys):
  one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
  job.run(scans, one, settings_lib.Settings(**_SETTINGS))
  with flagsaver.flagsaver(
    scans=scans, output=two, words=4, extend=f'{one}/vocabulary.json'
  ):
    job.main(['discover_words'])
  assert 'words: 4, cubes: 56' in capsys.readouterr().out.splitlines()
  old, new = (vocabulary.read_vocabulary(folder) for folder in (one, two))
  assert new.words[:2] == old.words
  assert new.settings == settings_lib.Settings(**_SETTINGS | {'words': 4})


@pytest.mark.long
def test_two_processes_write_the_same_vocabulary(job, scans, tmp_path):
  one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
  job.run(scans, one, settings_lib.Settings(**_SETTINGS))
  done = _run(*_TWO_PROCESSES, scans=scans, output=two, **_SETTINGS)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == f'vocabulary: {two}'
  assert _read(one) == _read(two)


@pytest.mark.long
def test_a_bad_scan_in_another_process_is_one_line(tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans')
  path = os.path.join(scans, 'subset5', 'text.mhd')
  with open(path, 'w', encoding='utf-8') as file:
    file.write('the scan is on the other disk\n')
  done = _run(
    '--strict',
    *_TWO_PROCESSES,
    scans=scans,
    output=tmp_path / 'vocabulary',
    **_SETTINGS,
  )
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith(
    f'error: strict: a scan cannot be used: unreadable: {path}'
  )
  assert 'Traceback' not in done.stderr
  assert os.listdir(tmp_path) == ['scans']


def test_an_unknown_flag_is_named(scans, tmp_path):
  done = _run('--wrods=3', scans=scans, output=tmp_path / 'vocabulary')
  assert done.returncode == 1
  assert (
    done.stderr.strip()
    .splitlines()[-1]
    .startswith(
      'error: unknown flag --wrods: neither a flag of this job nor an option of'
    )
  )
  assert 'Traceback' not in done.stderr
  assert os.listdir(tmp_path) == []


def test_help_shows_the_shared_flags_too(job):
  key_flags = flags.FLAGS.get_key_flags_for_module(job.__name__)
  names = {flag.name for flag in key_flags}
  assert names >= {
    *('scans', 'output', 'strict', 'extend', 'quality'),
    *('words', 'min_distance', 'seed', 'frame'),
  }


def test_an_output_that_exists_is_kept(job, scans, tmp_path):
  (tmp_path / 'mine.txt').write_text('kept')
  with pytest.raises(
    errors.UserError, match=r'--output .* exists; give another'
  ):
    job.run(scans, str(tmp_path), settings_lib.Settings())
  assert (tmp_path / 'mine.txt').read_text() == 'kept'


def test_a_wrong_folder_is_named(job, tmp_path):
  with pytest.raises(errors.UserError, match=r'no folder .*gone; give'):
    job.run(
      str(tmp_path / 'gone'), str(tmp_path / 'out'), settings_lib.Settings()
    )
  assert os.listdir(tmp_path) == []


def test_an_interrupted_run_leaves_nothing(job, scans, tmp_path):
  with (
    mock.patch.object(
      vocabulary, 'write_vocabulary', side_effect=KeyboardInterrupt
    ),
    pytest.raises(KeyboardInterrupt),
  ):
    job.run(scans, str(tmp_path / 'out'), settings_lib.Settings())
  assert os.listdir(tmp_path) == []
