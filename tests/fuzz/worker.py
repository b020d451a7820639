"""Runs cases in a process of its own, which a bad one may take down.

Started by `harness`. Reports a JSON line per case to a pipe, before and after.
"""

from collections.abc import Sequence
import contextlib
import faulthandler
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zlib

import numpy as np

from tests.fuzz import mutations

# What a case may take. The time is that of the processor, for other programs
# may have it as well; a case that only waits ends at the alarm.
SECONDS = 2.0
MEGABYTES = 512
_RESERVED_MEGABYTES = 6000
ALARM_SECONDS = 30.0
_LONGEST_MESSAGE = 2000

# Modules with targets; the latter need TensorFlow.
LIGHT_GROUPS = ('scan_targets', 'table_targets')
HEAVY_GROUPS = ('weight_targets', 'server_targets')

# What no reader does, by the names of Python's audit events.
_FORBIDDEN = re.compile(
  r'pickle\.find_class|os\.(system|exec|fork|forkpty|posix_spawn|startfile)'
  r'|subprocess\.Popen|socket\.(connect|bind|getaddrinfo)|os\.(chmod|chown)'
  r'|os\.(symlink|link|putenv)|webbrowser\.open|code\.__new__'
)


class _TooSlowError(BaseException):
  """A case did not end; not an Exception, so that no reader catches it."""


def load_targets(groups: Sequence[str] = (*LIGHT_GROUPS, *HEAVY_GROUPS)):
  """Returns the targets of some modules by name."""
  modules = [importlib.import_module(f'tests.fuzz.{one}') for one in groups]
  return {one.name: one for module in modules for one in module.TARGETS}


def make_case(target, seeds, seed: int, number: int) -> mutations.Files:
  """Returns the files of a case."""
  rng = np.random.default_rng([seed, zlib.crc32(target.name.encode()), number])
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # zipfile, of names that are there twice
    return target.mutate(rng, mutations.choose(rng, seeds))


def write_files(folder: str, files: mutations.Files) -> None:
  """Writes files, as far as their names can be had."""
  for name, content in files.items():
    path = os.path.join(os.fsencode(folder), name.encode('utf-8', 'replace'))
    with contextlib.suppress(OSError, ValueError):
      os.makedirs(os.path.dirname(path), exist_ok=True)
      with open(path, 'wb') as file:
        file.write(content)


class _Watch:
  """Notes what a reader does that it must not."""

  def __init__(self, allowed: tuple[str, ...]):
    self.on = False
    self.seen = []
    self._allowed = allowed
    sys.addaudithook(self._hook)

  def _hook(self, event, args):
    if not self.on:
      return
    if _FORBIDDEN.fullmatch(event):
      self.seen.append(f'{event} {args!r:.200}')
    elif event == 'open' and isinstance(args[0], (str, bytes)):
      path, _, flags = args
      writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      path = os.path.abspath(os.fsdecode(path))
      if writes and not path.startswith((*self._allowed, '/dev/null')):
        self.seen.append(f'open {path} for writing')


class Place:
  """The folders of a process: of a case, of temporary files, to work in."""

  def __init__(self, base: str):
    self.case = os.path.join(base, 'case')
    self.fixtures = os.path.join(base, 'fixtures')
    self.temporary = os.path.join(base, 'tmp')
    self.cwd = os.path.join(base, 'cwd')
    for folder in (self.fixtures, self.temporary, self.cwd):
      os.makedirs(folder, exist_ok=True)

  def put(self, files):
    shutil.rmtree(self.case, ignore_errors=True)
    os.makedirs(self.case)
    write_files(self.case, files)

  def state(self):
    """Returns all there is, in order to see what a reader left."""
    return [
      (at, sorted(folders), sorted(names))
      for top in (self.case, self.temporary, self.cwd)
      for at, folders, names in os.walk(top)
    ]


def _memory(key: bytes) -> int:
  """Returns a number of /proc/self/status, bytes."""
  with open('/proc/self/status', 'rb') as file:
    return int(re.search(key + rb':\s+(\d+)', file.read())[1]) * 1024


@contextlib.contextmanager
def _limits(megabytes: int):
  """Lets a case have more address space than there is now, but not all."""
  most = _memory(b'VmSize') + megabytes * 2**20
  hard = resource.getrlimit(resource.RLIMIT_AS)[1]
  resource.setrlimit(resource.RLIMIT_AS, (most, hard))
  signal.setitimer(signal.ITIMER_REAL, ALARM_SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _reset_peak():
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')


def _chain(error):
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _wanted_memory(error) -> bool:
  """Tells whether an error comes of a limit of memory."""
  return any(
    isinstance(one, MemoryError)
    or re.search(
      r'bad_alloc|[Ff]ailed to allocate|memory allocation failed', str(one)
    )
    for one in _chain(error)
  )


def _wrong_error(error, expected) -> str:
  """Returns what is wrong with what a reader raised; '' where nothing is."""
  if not isinstance(error, expected):
    lines = traceback.format_exception(error)
    return 'raised another error:\n' + ''.join(lines)[-3000:]
  text = str(error)
  if not text.strip() or '\n' in text or '\r' in text:
    return f'raised no single line: {text!r:.500}'
  if len(text) > _LONGEST_MESSAGE:
    return f'raised a line of {len(text)} characters: {text:.300}'
  try:
    text.encode()
  except UnicodeEncodeError:
    return f'raised a line that no file takes: {text!r:.500}'
  return ''


def _run_once(target, place, watch, files, megabytes=MEGABYTES) -> dict:
  """Runs a case; returns how long it took and what came of it."""
  place.put(files)
  before = place.state()
  watch.seen.clear()
  _reset_peak()
  resident = _memory(b'VmRSS')
  raised = None
  watch.on = True
  started = time.process_time()
  try:
    with _limits(megabytes), warnings.catch_warnings():
      warnings.simplefilter('ignore')
      target.read(place.case)
  except (Exception, _TooSlowError) as error:
    raised = error
  seconds = time.process_time() - started
  watch.on = False
  peak = max(0, _memory(b'VmHWM') - resident)
  wrong = ''
  if isinstance(raised, _TooSlowError):
    wrong = f'did not end within {ALARM_SECONDS:g} s'
  elif raised is not None:
    wrong = _wrong_error(raised, target.errors)
  if watch.seen:
    wrong = f'did what no reader does: {watch.seen[:3]}'
  elif not wrong and place.state() != before:
    wrong = 'left files behind, or changed those that were there'
  return {
    'seconds': seconds,
    'mb': peak / 2**20,
    'rejected': raised is not None,
    'wrong': wrong,
    'out of memory': raised is not None and _wanted_memory(raised),
  }


def _run_case(target, place, watch, files) -> dict:
  result = _run_once(target, place, watch, files)
  if result['out of memory'] or result['mb'] > 0.9 * MEGABYTES:
    # What counts is what it fills. Some libraries reserve what a file claims
    # before they find that there is less, and some hide that they got none.
    result = _run_once(target, place, watch, files, _RESERVED_MEGABYTES)
  if result['seconds'] > SECONDS and not result['wrong']:
    result['wrong'] = f'took {result["seconds"]:.1f} s'
  if result['mb'] > MEGABYTES:
    result['wrong'] = f'took {result["mb"]:.0f} MB'
  return result


def make_seeds(target, place) -> list[mutations.Files]:
  """Returns the seeds of a target; each can be read."""
  seeds = target.seeds(place.fixtures)
  for files in seeds:
    place.put(files)
    target.read(place.case)
  return seeds


def _measure(modules, job):
  """Starts to note which lines run; returns None where it is not asked for."""
  if not job['coverage']:
    return None
  import coverage

  files = [module.__file__ for module in modules]
  measured = coverage.Coverage(data_file=None, include=files)
  measured.start()
  return measured


def _lines(measured, target) -> dict[str, list[list[int]]]:
  """Returns by module the lines of the functions that read: all, and run."""
  import ast

  found = {}
  for module in target.modules:
    with open(module.__file__, encoding='utf-8') as file:
      tree = ast.parse(file.read())
    _, statements, excluded, _, _ = measured.analysis2(module)
    ran = set(measured.get_data().lines(module.__file__) or ())
    del excluded
    wanted = set(_function_lines(tree, target.leaves_out)) & set(statements)
    found[module.__name__] = [sorted(wanted), sorted(wanted & ran)]
  return found


def _function_lines(tree, leaves_out):
  """Yields the lines in functions, but for some names."""
  import ast

  for node in ast.iter_child_nodes(tree):
    if getattr(node, 'name', None) in leaves_out:
      continue
    if isinstance(node, ast.FunctionDef):
      yield from range(node.body[0].lineno, node.end_lineno + 1)
    elif isinstance(node, ast.ClassDef):
      yield from _function_lines(node, leaves_out)


def main() -> None:
  """Runs the job that the first argument holds, as JSON."""
  job = json.loads(sys.argv[1])
  pipe = os.fdopen(job['pipe'], 'w', buffering=1)
  faulthandler.enable()

  def report(**message):
    pipe.write(json.dumps(message) + '\n')

  def stop(*_):
    raise _TooSlowError

  signal.signal(signal.SIGALRM, stop)
  place = Place(job['base'])
  os.chdir(place.cwd)
  os.environ['TMPDIR'] = place.temporary
  known = load_targets(job['groups'])
  watch = _Watch((place.case + os.sep, place.temporary + os.sep))
  for name, first, last in job['ranges']:
    target = known[name]
    seeds = make_seeds(target, place)
    # Once more, so that nothing is done for the first time in a case.
    make_seeds(target, place)
    measured = _measure(target.modules, job)
    for number in range(first, last):
      report(started=[name, number])
      files = make_case(target, seeds, job['seed'], number)
      report(done=_run_case(target, place, watch, files))
    if measured:
      measured.stop()
      report(lines=_lines(measured, target))
  report(end=True)


if __name__ == '__main__':
  main()
