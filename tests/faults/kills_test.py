"""kill -9 at any moment, then the same command: the same result, to the bit."""

import os
import signal
import time

import numpy as np
import pytest

from tests.faults import jobs as jobs_lib
from tests.faults import processes
from tests.faults import table

pytestmark = pytest.mark.long

_DISCOVERY = 'discover_words'
_WORDS = 'tfds build transvw_luna16'
_NODULES = 'tfds build luna16_nodules'
_TRAINING = 'train --deterministic'
_EMBEDDING = 'embed_scans'
_ENDED = 'error: a worker process of Beam ended unexpectedly'


class _Trials:
  """Kills one job over and over, and looks at what is left each time."""

  def __init__(self, job, want, folder, server, seed):
    self._job = job
    self._want = want
    self._folder = folder
    self._server = server
    self._rng = np.random.default_rng(seed)
    self._outputs = 0
    self._runs = 0
    self._new_output()
    # How long it takes now, from its first file on.
    with self._start() as process:
      self._wait_for_files(process)
      start = time.monotonic()
      assert process.wait() == 0, process.text[-3000:]
      self._seconds = time.monotonic() - start
    self._check_whole()
    self._new_output()

  def kill(self, whom, times, fault, cold=False):
    """Kills the job so many times, and looks at what is left."""
    done = 0
    while done < times:
      done += self._kill_once(whom, fault, cold)

  def _kill_once(self, whom, fault, cold) -> bool:
    begin = time.monotonic()
    with self._start(cold) as process:
      if cold:
        # From the very first import on.
        time.sleep(self._rng.uniform(0, 15))
      else:
        self._wait_for_files(process)
        if whom == 'worker':
          process.wait_until(process.workers)
        time.sleep(self._rng.uniform(0, self._seconds))
      if not self._do_kill(process, whom):
        assert process.wait() == 0, process.text[-3000:]
        self._check_whole()
        self._new_output()
        return False
      with table.trial(fault) as seen:
        seconds = time.monotonic() - begin
        self._look(process, whom, seen)
        print(f'{fault}: after {seconds:.1f} s, {seen}')
    return True

  def _do_kill(self, process, whom) -> bool:
    """Returns whether there was something to kill."""
    if whom == 'worker':
      workers = process.workers()
      if workers:
        workers[self._rng.integers(len(workers))].kill()
      return bool(workers)
    if process.poll() is not None:
      return False
    process.kill_group() if whom == 'group' else process.kill()
    return process.wait() == -signal.SIGKILL

  def _look(self, process, whom, seen):
    """Checks what a kill left."""
    code = process.wait()
    process.wait_for_children()
    if code == 0:  # the worker had nothing left to do
      seen.append('nothing, its work was done')
      self._check_whole()
      self._new_output()
      return
    if whom == 'worker':
      assert code == 1, process.text[-3000:]
      assert _ENDED.removeprefix('error: ') in process.last_line, process.text[
        -3000:
      ]
      seen.append(f'`{process.last_line}`')
    else:
      seen.append('`Killed`, of the shell')
    whole = self._job.whole
    if whole and os.path.exists(whole(self._output())):
      # Killed after its last word.
      self._check_whole()
      self._new_output()
      return
    self._job.check_refused(self._output())

  def finish(self):
    """The same command again: it ends, and the result is the same."""
    with self._start() as process:
      assert process.wait() == 0, process.text[-3000:]
    self._check_whole()
    self._new_output()

  def _check_whole(self):
    jobs_lib.check_same(self._want, self._job.read(self._output()))

  def _start(self, cold=False):
    self._runs += 1
    return processes.Process(
      self._job.command(self._output()),
      os.path.join(self._folder, f'{self._runs}.log'),
      None if cold else self._server,
    )

  def _wait_for_files(self, process):
    before = self._count()
    process.wait_until(lambda: self._count() != before)

  def _count(self):
    """Returns how many files there are, in which folders."""
    found = set()
    for at, _, names in os.walk(os.path.join(self._folder, 'out')):
      found |= {os.path.join(at, name) for name in names} | {at}
    return found

  def _output(self):
    return os.path.join(self._folder, 'out', str(self._outputs))

  def _new_output(self):
    self._outputs += 1
    os.makedirs(os.path.join(self._folder, 'out'), exist_ok=True)


@pytest.fixture(name='trials')
def _trials(jobs, undisturbed, server, tmp_path):
  def make(name, seed, two_processes=False):
    job = jobs[name].on_two_processes() if two_processes else jobs[name]
    return _Trials(job, undisturbed(name), str(tmp_path), server, seed)

  return make


@pytest.mark.parametrize(
  ('name', 'times'),
  [
    (_DISCOVERY, 20),
    (_WORDS, 20),
    (_NODULES, 14),
    (_TRAINING, 15),
    (_EMBEDDING, 20),
  ],
)
def test_one_process(trials, name, times):
  some = trials(name, seed=times)
  some.kill('driver', times, f'kill -9, one process, started warm: {name}')
  some.finish()


@pytest.mark.parametrize(
  'name', [_DISCOVERY, _WORDS, _NODULES, _TRAINING, _EMBEDDING]
)
def test_from_the_start_on(trials, name):
  some = trials(name, seed=2)
  some.kill('driver', 2, f'kill -9, from the first import on: {name}', True)
  some.finish()


@pytest.mark.parametrize(
  ('name', 'times'),
  [(_DISCOVERY, (3, 2, 1)), (_WORDS, (2, 1, 1)), (_EMBEDDING, (2, 1, 1))],
)
def test_two_processes(trials, name, times):
  some = trials(name, seed=3, two_processes=True)
  for (whom, what), count in zip(
    (
      ('worker', 'a worker of two'),
      ('driver', 'the job, not its two workers'),
      ('group', 'the job and its two workers'),
    ),
    times,
    strict=True,
  ):
    some.kill(whom, count, f'kill -9, {what}: {name}')
  some.finish()
