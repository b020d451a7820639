"""One run at a time may write to a folder; the lock goes with its process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from transvw_tf2 import errors
from transvw_tf2 import output_lock

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _hold(folder):
  """Starts a process that holds a folder; returns it when it does."""
  process = subprocess.Popen(
    [
      *(sys.executable, '-c'),
      'import sys, time\n'
      'from transvw_tf2 import output_lock\n'
      'with output_lock.hold(sys.argv[1]):\n'
      '  print(flush=True)\n'
      '  time.sleep(600)\n',
      str(folder),
    ],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
  )
  process.stdout.readline()
  return process


def test_the_second_is_refused_until_the_first_is_killed(tmp_path):
  folder = tmp_path / 'new' / 'folder'
  process = _hold(folder)
  try:
    with (
      pytest.raises(errors.UserError, match=r'another run is writing to OUT: '),
      output_lock.hold(str(folder), 'OUT'),
    ):
      pass
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  with output_lock.hold(str(folder)):
    assert os.listdir(folder) == []


def test_an_error_gives_the_folder_back(tmp_path):
  for _ in range(2):
    with pytest.raises(KeyError), output_lock.hold(str(tmp_path)):
      raise KeyError
  with (
    output_lock.hold(str(tmp_path)),
    pytest.raises(errors.UserError),
    output_lock.hold(str(tmp_path)),
  ):
    pass


def test_what_cannot_be_locked_is_left_to_whoever_writes(tmp_path):
  (tmp_path / 'file').write_text('')
  with output_lock.hold(str(tmp_path / 'file' / 'folder')):
    pass


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
  output = str(tmp_path / 'output')
  # As of a run that was killed.
  (tmp_path / 'output.incomplete' / 'old').mkdir(parents=True)
  (tmp_path / 'output.incomplete' / 'older.txt').write_text('')
  with pytest.raises(KeyError), output_lock.making(output) as folder:
    assert os.listdir(folder) == []
    with open(os.path.join(folder, 'half.txt'), 'w', encoding='utf-8'):
      raise KeyError
  assert os.listdir(tmp_path) == []
  with output_lock.making(output + '/') as folder:
    assert not os.path.exists(output)
    with (
      pytest.raises(errors.UserError, match='another run is writing to'),
      output_lock.making(output),
    ):
      pass
    # The one that was refused has taken nothing away.
    assert os.path.isdir(folder)
  assert os.listdir(tmp_path) == ['output']
  with (
    pytest.raises(errors.UserError, match='exists; give another folder'),
    output_lock.making(output),
  ):
    pass


def test_a_file_is_made_in_a_folder_of_its_own(tmp_path):
  output = tmp_path / 'output.npz'
  with output_lock.making(str(output), 'one.npz') as folder:
    for name in ('one.npz', 'other.txt'):
      with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
        file.write(name)
  assert os.listdir(tmp_path) == ['output.npz']
  assert output.read_text() == 'one.npz'
  with (
    pytest.raises(errors.UserError, match='exists; give another file'),
    output_lock.making(str(output), 'one.npz'),
  ):
    pass


def test_a_name_that_nothing_could_take_is_refused_at_once(tmp_path):
  (tmp_path / 'link').symlink_to('nowhere')
  for output in (f'{tmp_path}/link', f'{tmp_path}/link/'):
    with (
      pytest.raises(errors.UserError, match='exists; give another folder'),
      output_lock.making(output),
    ):
      pass
  with (
    output_lock.making(f'{tmp_path}/file/', 'one.npz') as folder,
    open(os.path.join(folder, 'one.npz'), 'x', encoding='utf-8'),
  ):
    pass
  assert sorted(os.listdir(tmp_path)) == ['file', 'link']


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(errors.UserError, match=r'--output .* cannot be written'),
    output_lock.making(str(tmp_path / 'file' / 'output')),
  ):
    pass


def test_of_many_that_start_together_one_makes_it(tmp_path):
  """However the locks and the renames fall."""
  output = str(tmp_path / 'output')
  script = (
    'import sys\n'
    'from transvw_tf2 import errors, output_lock\n'
    'while True:\n'
    '  try:\n'
    '    with output_lock.making(sys.argv[1]) as folder:\n'
    "      open(folder + '/by.txt', 'x').write(sys.argv[2])\n"
    "    print('made')\n"
    '  except errors.UserError as error:\n'
    "    if 'exists' in str(error):\n"
    '      break\n'
  )
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', script, output, str(number)],
      cwd=_ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(4)
  ]
  end = time.monotonic() + 60
  made = [
    one.communicate(timeout=end - time.monotonic())[0].split()
    for one in processes
  ]
  assert [one.returncode for one in processes] == [0] * 4
  assert sorted(made) == [[], [], [], ['made']]
  assert os.listdir(tmp_path) == ['output']
  by = (tmp_path / 'output' / 'by.txt').read_text()
  assert made[int(by)] == ['made']
