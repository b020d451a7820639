"""Mains end with one line and an exit code; each runs in its own process."""

import os
import subprocess
import sys

import pytest

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_MAIN = """
from absl import flags
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

{before}

def main(argv):
  {body}

mains.run(main, {options})
"""


def _run(body, *arguments, options='', before=''):
  main = _MAIN.format(body=body, options=options, before=before)
  return subprocess.run(
    [sys.executable, '-c', main, *arguments],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )


@pytest.mark.parametrize(
  ('body', 'line'),
  [
    ("raise errors.UserError('a is 1,\\n wanted 2')", 'a is 1, wanted 2'),
    ("raise reader.ScanError('not_3d', 'x.npy')", 'not_3d: x.npy'),
    ("raise luna16.LayoutError('no subset')", 'no subset'),
  ],
)
def test_expected_errors_are_one_line(body, line):
  done = _run(body)
  assert done.returncode == 1
  assert done.stderr == f'error: {line}\n'
  assert done.stdout == ''


def test_a_defect_keeps_its_traceback():
  done = _run("raise KeyError('lost')")
  assert done.returncode != 0
  assert 'Traceback' in done.stderr
  assert "KeyError: 'lost'" in done.stderr


def test_success_and_arguments():
  for option in ('positional=True', 'known_only=True'):
    done = _run('print(argv[1:])', 'one', 'two', options=option)
    assert (done.returncode, done.stdout) == (0, "['one', 'two']\n")
  assert _run('return 3').returncode == 3


def test_what_is_no_flag_is_refused():
  done = _run('print(1)', 'b=B', 'false')
  assert (done.returncode, done.stdout) == (1, '')
  assert done.stderr.startswith('error: unexpected arguments b=B false; wanted')
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  'flags',
  [
    ('make_phantom.py', '--out=OUT', '--detected_candidates', 'false'),
    ('transfer_study.py', '--output=OUT', '--data=a=A', 'false'),
  ],
)
def test_tools_refuse_what_is_no_flag(flags, tmp_path):
  tool = os.path.join(_ROOT, 'tools', flags[0])
  done = subprocess.run(
    [sys.executable, tool, *flags[1:]],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': _ROOT},
    check=False,
  )
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert line.startswith('error: unexpected arguments false; wanted')
  assert not list(tmp_path.iterdir())


def test_unknown_flags_are_named():
  done = _run('pass', '--no_such_flag=1')
  assert done.returncode == 1
  assert "Unknown command line flag 'no_such_flag'" in done.stderr
  assert 'Traceback' not in done.stderr


def test_wrong_flags_of_a_job_are_one_line():
  done = _run(
    'print(argv[1:])',
    '--n=three',
    options='known_only=True',
    before='flags.DEFINE_integer("n", 1, "")',
  )
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and '--n=three' in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('chosen', 'taken'), [(None, '1'), ('0', '0')])
def test_onednn_is_asked_for_unless_the_user_says(monkeypatch, chosen, taken):
  monkeypatch.delenv('TF_ENABLE_ONEDNN_OPTS', raising=False)
  if chosen:
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', chosen)
  done = _run("import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])")
  assert done.stdout == f'{taken}\n'
