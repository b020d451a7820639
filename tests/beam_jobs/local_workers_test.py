"""A worker that was killed ends the job, and a killed job its workers."""

import errno
import os
import signal
import subprocess
import sys
import time

import apache_beam as beam
from apache_beam.options import pipeline_options
import pytest

from beam_jobs import local_worker
from beam_jobs import local_workers
from beam_jobs import pipelines
from transvw_tf2 import errors

_TWO_PROCESSES = pipeline_options.PipelineOptions(
  [
    '--runner=FnApiRunner',
    '--direct_num_workers=2',
    '--direct_running_mode=multi_processing',
  ]
)


class _KillWorkerFn(beam.DoFn):
  def __init__(self, parent):
    self._parent = parent

  def process(self, number):
    assert os.getpid() != self._parent
    if number == 3:
      os.kill(os.getpid(), signal.SIGKILL)
    # What the others do is over, too.
    time.sleep(30)
    yield number


# Beam's threads say that the connection broke.
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
@pytest.mark.long
def test_a_killed_worker_is_one_line():
  """Beam alone waits for ever."""
  start = time.monotonic()
  with pytest.raises(
    errors.UserError,
    match=r'a worker process of Beam ended unexpectedly \(exit code -9\): .*'
    'the same command',
  ):
    pipelines.run(
      beam.Create(range(4))
      | beam.Reshuffle()
      | beam.ParDo(_KillWorkerFn(os.getpid())),
      options=_TWO_PROCESSES,
    )
  assert time.monotonic() - start < 60  # rather than twice 30 s of each


def test_a_connection_that_breaks_first_is_the_same_line():
  def fail(element):
    # What is seen of a worker that was killed is a matter of milliseconds.
    local_workers.LocalWorkerHandler.killed.append(
      f'{local_workers.ENDED} (exit code -9)'
    )
    raise RuntimeError('Channel closed prematurely.')

  with pytest.raises(
    errors.UserError, match=r'unexpectedly \(exit code -9\): '
  ):
    pipelines.run(beam.Create([1]) | beam.Map(fail))


def test_workers_killed_before_explain_nothing():
  local_workers.LocalWorkerHandler.killed.append('of an earlier pipeline')

  def fail(element):
    raise KeyError('a defect')

  with pytest.raises(KeyError, match='a defect'):
    pipelines.run(beam.Create([1]) | beam.Map(fail))


@pytest.mark.long
def test_workers_that_are_left_alone_do_their_work():
  counters = pipelines.run(
    beam.Create(range(4))
    | beam.Reshuffle()
    | beam.Map(_count_in_worker, os.getpid()),
    options=_TWO_PROCESSES,
  )
  assert counters == {'numbers': 6}


def _count_in_worker(number, parent):
  assert os.getppid() == parent  # no shell between them
  pipelines.count('numbers', number)


def test_a_worker_ends_with_its_job(tmp_path):
  """Also while it has not found the job yet."""
  seen = tmp_path / 'worker.txt'
  worker = (
    'import os, sys\n'
    'from beam_jobs import local_worker\n'
    "with open(sys.argv[1] + '.new', 'w') as file:\n"
    '  file.write(str(os.getpid()))\n'
    "os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
    'local_worker.end_with(int(sys.argv[2]))\n'
  )
  job = (
    'import os, subprocess, sys\n'
    'subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2],'
    ' str(os.getpid())])\n'
  )
  process = subprocess.Popen([sys.executable, '-c', job, worker, str(seen)])
  _wait_until(seen.exists)
  pid = int(seen.read_text())
  time.sleep(2 * local_worker._SECONDS_BETWEEN_LOOKS)
  assert _is_alive(pid)
  process.kill()
  process.wait()
  _wait_until(lambda: not _is_alive(pid))


def _is_alive(pid):
  try:
    with open(f'/proc/{pid}/stat', encoding='utf-8') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def _wait_until(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.05)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO])
def test_what_a_disk_says_is_one_line(number):
  def fail(path):
    raise OSError(number, os.strerror(number), path)

  with pytest.raises(errors.UserError) as caught:
    pipelines.run(beam.Create(['/somewhere']) | beam.Map(fail))
  line = str(caught.value)
  assert os.strerror(number) in line and '/somewhere' in line, line
  assert line.endswith(': mend that, and give the same command again')
  assert '\n' not in line and '[while' not in line
