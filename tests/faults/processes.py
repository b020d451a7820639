"""Processes of commands, to be killed: started cold, or warm by the server."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
import signal
import subprocess
import sys
import time

import psutil

ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
# Of a process on a busy machine.
_PATIENCE = 300.0
# A worker looks twice a second whether its job is still there.
_ORPHAN_SECONDS = 30.0


class Server:
  """Runs `tests.faults.server`."""

  def __enter__(self):
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'tests.faults.server'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      cwd=ROOT,
      env=environment(),
      text=True,
    )
    self._answer()  # it is ready
    return self

  def __exit__(self, *error):
    self._process.stdin.close()
    self._process.wait()

  def ask(self, **request):
    """Returns the server's answer."""
    print(json.dumps(request), file=self._process.stdin, flush=True)
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    assert line, 'the server is gone'
    return json.loads(line)


def environment() -> dict[str, str]:
  """Returns the environment of all processes."""
  return os.environ | {
    'PYTHONPATH': ROOT,
    'PYTHONUNBUFFERED': '1',
    'TF_CPP_MIN_LOG_LEVEL': '2',
  }


class Process:
  """A command; it and all its children are killed when it is left."""

  def __init__(
    self,
    command: Sequence[str],
    log: str,
    server: Server | None = None,
    file_limit: int = 0,
  ):
    """Starts it.

    Args:
      command: a module and its arguments, or tfds and its own.
      log: file for what it prints.
      server: starts it warm; None starts a new interpreter.
      file_limit: bytes that a file may have, 0 for any number.
    """
    self._log = log
    self._server = server
    self._code = None
    if server:
      self.pid = server.ask(
        do='start', command=list(command), log=log, file_limit=file_limit
      )
      return
    assert not file_limit, 'only of the server'
    module, *arguments = command
    program = (
      [os.path.join(os.path.dirname(sys.executable), 'tfds')]
      if module == 'tfds'
      else [sys.executable, '-m', module]
    )
    with open(log, 'ab') as file:
      self._process = subprocess.Popen(
        [*program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
      )
    self.pid = self._process.pid

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if self.poll() is None:
      self.kill_group()
      self.wait()

  @property
  def text(self) -> str:
    """What it printed."""
    with open(self._log, encoding='utf-8', errors='replace') as file:
      return file.read()

  @property
  def last_line(self) -> str:
    """The last line that it printed."""
    return (self.text.strip().splitlines() or [''])[-1]

  def poll(self) -> int | None:
    """Returns the exit code; None while it runs."""
    if self._code is None:
      self._code = (
        self._server.ask(do='poll', pid=self.pid)
        if self._server
        else self._process.poll()
      )
    return self._code

  def wait_until(self, condition: Callable[[], object]) -> bool:
    """Returns whether the condition held before the process ended."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
      if condition():
        return True
      if self.poll() is not None:
        return False
      time.sleep(0.01)
    raise AssertionError(f'nothing happened: {self.text[-3000:]}')

  def wait(self) -> int:
    """Waits for the end; returns the exit code."""
    self.wait_until(lambda: False)
    return self._code

  def kill(self) -> None:
    """Kills the process, and not its children."""
    os.kill(self.pid, signal.SIGKILL)

  def kill_group(self) -> None:
    """Kills the process and its children at once."""
    os.killpg(self.pid, signal.SIGKILL)

  def workers(self) -> list[psutil.Process]:
    """Returns Beam's worker processes."""
    try:
      children = psutil.Process(self.pid).children(recursive=True)
    except psutil.NoSuchProcess:
      return []
    return [one for one in children if _is_alive(one)]

  def wait_for_children(self) -> None:
    """Waits until no process of the group is left; raises AssertionError."""
    end = time.monotonic() + _ORPHAN_SECONDS
    while left := [one for one in psutil.process_iter() if self._owns(one)]:
      assert time.monotonic() < end, f'they go on without their job: {left}'
      time.sleep(0.1)

  def _owns(self, process) -> bool:
    try:
      return os.getpgid(process.pid) == self.pid and _is_alive(process)
    except ProcessLookupError:
      return False


def _is_alive(process: psutil.Process) -> bool:
  try:
    return process.status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False
