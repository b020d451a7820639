"""A side of a benchmark in a process of its own, told what to do line by line.

So each side has its own libraries, threads and memory, and all go in turn.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import json
import os
import subprocess
import sys
import tempfile

from transvw_tf2 import errors


class SideProcess:
  """The process of a side, as the benchmark sees it."""

  def __init__(
    self,
    name: str,
    script: str,
    settings: Mapping,
    environment: Mapping[str, str] | None = None,
  ):
    """Starts the process.

    Args:
      name: of the side, for messages.
      script: its path; calls `serve`.
      settings: JSON values, the script's only argument.
      environment: what it has beside that of this process.
    """
    self._name = name
    self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115, see close
    self._process = subprocess.Popen(
      [sys.executable, script, json.dumps(settings)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      env=os.environ | dict(environment or {}),
    )

  def ask(self, line: str):
    """Has the process do what a line says; returns what comes back, of JSON.

    Raises:
      UserError: the process has ended.
    """
    try:
      print(line, file=self._process.stdin, flush=True)
    except BrokenPipeError:
      answer = ''
    else:
      answer = self._process.stdout.readline()
    if not answer:
      self._process.wait()
      self._log.seek(0)
      lines = self._log.read().splitlines() or ['no output']
      told = [line for line in lines if 'Error' in line] or lines
      raise errors.UserError(
        f'the process of {self._name} failed: {told[-1].strip()}'
      )
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._log.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def serve(make_answer: Callable[[], Callable[[str], object]]) -> None:
  """Answers on lines of stdout what lines of stdin ask for.

  Args:
    make_answer: makes what answers a line, with a value that JSON holds;
      imports and builds.
  """
  # Libraries may print; answers have a way of their own.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  answer = make_answer()
  for line in sys.stdin:
    print(json.dumps(answer(line.strip())), file=answers, flush=True)
