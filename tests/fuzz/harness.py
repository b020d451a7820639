"""Runs cases in child processes and says what came of them."""

from collections.abc import Iterable
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile

from tests.fuzz import worker

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
# A child that is silent for so long hangs outside of Python; imports of
# TensorFlow, before the first case, take longer.
_SILENT_SECONDS = worker.ALARM_SECONDS * 2
_START_SECONDS = 600
_MOST_RESTARTS = 50
# Files of a case live for milliseconds.
_MEMORY = '/dev/shm'


@dataclasses.dataclass
class Outcome:
  """What the cases of a reader came to.

  Attributes:
    name: of the reader.
    cases: how many there were.
    rejected: of them with a reason.
    seconds: of the slowest.
    megabytes: that the largest took beyond what the process had.
    failures: what went wrong, by number of the case.
    lines: by module the lines of the functions that read, and those that ran.
  """

  name: str
  cases: int = 0
  rejected: int = 0
  seconds: float = 0.0
  megabytes: float = 0.0
  failures: dict[int, str] = dataclasses.field(default_factory=dict)
  lines: dict[str, tuple[set[int], set[int]]] = dataclasses.field(
    default_factory=dict
  )

  def add(self, number: int, result: dict) -> None:
    """Counts a case."""
    self.cases += 1
    self.rejected += result['rejected']
    self.seconds = max(self.seconds, result['seconds'])
    self.megabytes = max(self.megabytes, result['mb'])
    if result['wrong']:
      self.failures[number] = result['wrong']

  @property
  def coverage(self) -> float:
    """Share of the lines that ran; NaN where it was not measured."""
    wanted = sum(len(one) for one, _ in self.lines.values())
    ran = sum(len(one) for _, one in self.lines.values())
    return ran / wanted if wanted else float('nan')

  def missed(self) -> dict[str, list[int]]:
    """Returns the lines that did not run, by module."""
    return {
      name: sorted(wanted - ran)
      for name, (wanted, ran) in self.lines.items()
      if wanted - ran
    }


def run(
  names: Sequence[str],
  cases: int,
  *,
  seed: int = 1,
  first: int = 0,
  coverage: bool = False,
  groups: Sequence[str] | None = None,
) -> list[Outcome]:
  """Runs cases of some readers, one after the other, in one child at a time.

  Args:
    names: of the readers.
    cases: of each.
    seed: decides all cases, with the name of the reader and the number.
    first: number of the first case.
    coverage: whether to note the lines that run, which takes longer.
    groups: modules that have the readers, all by default.
  """
  groups = groups or (*worker.LIGHT_GROUPS, *worker.HEAVY_GROUPS)
  outcomes = {name: Outcome(name) for name in names}
  ranges = [[name, first, first + cases] for name in names]
  restarts = 0
  with tempfile.TemporaryDirectory(
    prefix='transvw_fuzz_', dir=_MEMORY if os.path.isdir(_MEMORY) else None
  ) as base:
    while ranges:
      job = {
        **{'ranges': ranges, 'seed': seed, 'coverage': coverage},
        **{'groups': groups, 'base': base},
      }
      ranges = _run_child(job, outcomes)
      restarts += 1
      if restarts > _MOST_RESTARTS:
        raise RuntimeError(f'{restarts} children died; left: {ranges}')
  return list(outcomes.values())


def share_lines(outcomes: Sequence[Outcome]) -> None:
  """Counts a line that ran for one reader for all that share its module."""
  ran = {}
  for one in outcomes:
    for name, (_, lines) in one.lines.items():
      ran.setdefault(name, set()).update(lines)
  for one in outcomes:
    for name, (wanted, lines) in one.lines.items():
      lines |= wanted & ran[name]


def _run_child(job, outcomes) -> list:
  """Runs a child to its end, and returns what it left undone."""
  reader, writer = os.pipe()
  log_path = os.path.join(job['base'], 'log.txt')
  with open(log_path, 'wb') as log:
    child = subprocess.Popen(
      [
        *(sys.executable, '-m', 'tests.fuzz.worker'),
        json.dumps(job | {'pipe': writer}),
      ],
      cwd=_ROOT,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      pass_fds=[writer],
      env={
        **os.environ,
        # Threads and pools take address space, which is what is limited.
        **{'MALLOC_ARENA_MAX': '1', 'ARROW_DEFAULT_MEMORY_POOL': 'system'},
        **{'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3'},
        'PYTHONPATH': os.pathsep.join(
          [_ROOT, *filter(None, [os.environ.get('PYTHONPATH')])]
        ),
      },
    )
  os.close(writer)
  at, ended = None, False
  with contextlib.closing(os.fdopen(reader, 'rb', buffering=0)) as pipe:
    for line in _lines(pipe):
      message = json.loads(line)
      if 'started' in message:
        at = message['started']
      elif 'done' in message:
        outcomes[at[0]].add(at[1], message['done'])
        at = [at[0], at[1] + 1, True]
      elif 'lines' in message:
        _add_lines(outcomes[at[0]], message['lines'])
      ended |= 'end' in message
  status = _end(child)
  if ended:
    return []
  with open(log_path, errors='replace') as log:
    tail = log.read()[-3000:]
  if at is None:
    raise RuntimeError(f'the child ended with {status} at its start:\n{tail}')
  name, number, *done = at
  if not done:
    how = signal.Signals(-status).name if status < 0 else status
    result = {'rejected': False, 'seconds': 0.0, 'mb': 0.0}
    outcomes[name].add(number, {**result, 'wrong': f'{how}:\n{tail}'})
    number += 1
  place = [one[0] for one in job['ranges']].index(name)
  rest = (
    [[name, number, job['ranges'][place][2]]]
    if (number < job['ranges'][place][2])
    else []
  )
  return rest + job['ranges'][place + 1 :]


def _end(child) -> int:
  """Waits for a child that has closed its pipe; kills one that hangs."""
  try:
    return child.wait(timeout=5)
  except subprocess.TimeoutExpired:
    child.kill()
    return child.wait()


def _lines(pipe) -> Iterable[bytes]:
  """Yields the lines of a child until it is silent for too long, or ends."""
  rest, wait = b'', _START_SECONDS
  while select.select([pipe], [], [], wait)[0]:
    data = pipe.read(1 << 16)
    if not data:
      return
    *lines, rest = (rest + data).split(b'\n')
    yield from lines
    # Seeds of the next reader are made between two cases.
    wait = (
      _SILENT_SECONDS if b'started' in (lines or [b''])[-1] else _START_SECONDS
    )


def _add_lines(outcome, lines) -> None:
  for name, (wanted, ran) in lines.items():
    known = outcome.lines.setdefault(name, (set(), set()))
    known[0].update(wanted)
    known[1].update(ran)
