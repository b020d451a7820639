"""Live progress of a pass over scans, and what it counted in the end.

Workers append a line for each scan to a file in the temporary folder of the
job; a thread of the driver reads it and shows a bar on a terminal, or else a
line now and then. Where workers do not share that folder less is shown, and
nothing fails. What the job counts is written without times, so that it is the
same for any number of workers; times are told on stderr, and added as a line of
JSON for each pass to the file that TRANSVW_TIMES in the environment names.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time

from absl import logging
import tqdm

from beam_jobs import amounts
from transvw_tf2 import output_file
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import stored_bytes

# Of the scans that could be used; any other outcome is a reason.
DONE = 'done'

COUNTERS_FILE = 'counters.json'
# Not a flag: TFDS takes none, and the builders have passes too.
TIMES_VARIABLE = 'TRANSVW_TIMES'
LOG_FILE = 'progress.jsonl'

# Between two looks at the file, and between two lines without a terminal.
_LOOK_SECONDS = 1.0
_LINE_SECONDS = 30.0


@dataclasses.dataclass
class Entry:
  """What a worker says of a scan; `cubes` is set while it is worked on."""

  scan_id: str
  outcome: str = DONE
  read_bytes: int = 0
  cubes: int = 0
  seconds: float = 0.0


class ScanLog:
  """The file of a pass, to which any process may append."""

  def __init__(self, folder: str):
    """Initialises the log.

    Args:
      folder: temporary folder of the job, which goes with all in it; made anew
        for each run, so that no line is of an earlier one.
    """
    self._path = os.path.join(folder, LOG_FILE)

  def add(self, entry: Entry) -> None:
    """Adds a line."""
    line = json.dumps(list(dataclasses.astuple(entry))) + '\n'
    # A worker on another machine may not have the folder.
    with contextlib.suppress(OSError):
      file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
      try:
        # One call: lines of several processes never mix.
        os.write(file, line.encode('utf-8'))
      finally:
        os.close(file)

  def remove(self) -> None:
    """Removes the file, where the folder is not the job's own."""
    with contextlib.suppress(OSError):
      os.remove(self._path)

  def read(self, start: int = 0) -> tuple[list[Entry], int]:
    """Returns entries from a byte on, and the byte after the last of them."""
    try:
      with open(self._path, 'rb') as file:
        file.seek(start)
        found = file.read()
    except OSError:
      return [], start
    whole = found[: found.rfind(b'\n') + 1]
    entries = []
    for line in whole.splitlines():
      # Never in the way of the job, whatever a file system makes of the lines.
      with contextlib.suppress(ValueError, TypeError):
        scan_id, outcome, count, cubes, seconds = json.loads(line)
        entries.append(
          Entry(str(scan_id), outcome, int(count), int(cubes), float(seconds))
        )
    return entries, start + len(whole)


@contextlib.contextmanager
def on_scan(log: ScanLog | None, scan_file: luna16.ScanFile) -> Iterator[Entry]:
  """Adds a line when a scan is done, or turns out to be of no use.

  Args:
    log: to add to; None adds nothing.
    scan_file: the scan.

  Raises:
    reader.ScanError: what the block raises; its reason is the outcome.
  """
  entry = Entry(scan_file.scan_id)
  start = time.monotonic()
  try:
    yield entry
  except reader.ScanError as error:
    entry.outcome = error.reason
    add_line(log, scan_file, entry, start)
    raise
  add_line(log, scan_file, entry, start)


def add_line(
  log: ScanLog | None, scan_file: luna16.ScanFile, entry: Entry, start: float
) -> None:
  """Adds a line of a scan.

  Args:
    log: to add to; None adds nothing.
    scan_file: the scan.
    entry: what to say of it; bytes and seconds are filled in.
    start: `time.monotonic()` when work on the scan began.
  """
  if log is not None:
    entry.read_bytes = stored_bytes.count(scan_file.path)
    entry.seconds = round(max(0.0, time.monotonic() - start), 3)
    log.add(entry)


@dataclasses.dataclass
class Totals:
  """Sums over the scans that are done; each counts once."""

  scans: int = 0
  rejected: int = 0
  cubes: int = 0
  read_bytes: int = 0

  @classmethod
  def of(cls, entries: Mapping[str, Entry]) -> 'Totals':
    """Returns the totals of the last entry of each scan."""
    values = entries.values()
    return cls(
      scans=len(entries),
      rejected=sum(one.outcome != DONE for one in values),
      cubes=sum(one.cubes for one in values),
      read_bytes=sum(one.read_bytes for one in values),
    )


class Watch:
  """Shows the progress of a pass while its `with` block runs, on stderr."""

  def __init__(self, log: ScanLog, title: str, scans: int, read_bytes: int):
    """Initialises the watch.

    Args:
      log: that the workers write to.
      title: of the pass.
      scans: number of those that it will read.
      read_bytes: of all of them; 0 where it is not known.
    """
    self._log = log
    self._title = title
    self._scans = scans
    self._read_bytes = read_bytes
    self._entries: dict[str, Entry] = {}
    self._offset = 0
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._run, name='progress', daemon=True
    )
    self._bar = None

  def __enter__(self) -> 'Watch':
    self._start = self._shown = time.monotonic()
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=self._scans,
        desc=self._title,
        bar_format='{desc}: {n_fmt}/{total_fmt} scans |{bar}|{postfix}',
        dynamic_ncols=True,
        leave=False,
      )
    self._thread.start()
    return self

  def __exit__(self, kind, error, traceback) -> None:
    self._stop.set()
    self._thread.join()
    totals = self._read()
    if self._bar is not None:
      self._bar.close()
    if kind is None and self._scans:
      seconds = time.monotonic() - self._start
      print(self._last_line(totals, seconds), file=sys.stderr, flush=True)
      self._note_times(totals, seconds)

  def _run(self) -> None:
    while not self._stop.wait(_LOOK_SECONDS):
      totals = self._read()
      if self._bar is not None:
        self._bar.n = totals.scans
        self._bar.set_postfix_str(self._details(totals))
      elif time.monotonic() - self._shown >= _LINE_SECONDS:
        self._shown = time.monotonic()
        line = f'{self._title}: {totals.scans} of {self._scans} scans, '
        print(line + self._details(totals), file=sys.stderr, flush=True)

  def _read(self) -> Totals:
    entries, self._offset = self._log.read(self._offset)
    self._entries.update((one.scan_id, one) for one in entries)
    return Totals.of(self._entries)

  def _details(self, totals: Totals) -> str:
    parts = [f'{totals.rejected} rejected']
    if totals.cubes:
      parts.append(f'{totals.cubes:,} cubes')
    seconds = time.monotonic() - self._start
    if self._read_bytes:
      parts.append(amounts.speed(totals.read_bytes, seconds))
    # By bytes: scans differ in size. By scans where sizes are not known.
    done, all_of_it = totals.read_bytes, self._read_bytes
    if not all_of_it:
      done, all_of_it = totals.scans, self._scans
    if done and totals.scans < self._scans:
      left = seconds * max(0, all_of_it - done) / done
      parts.append(f'{amounts.duration(left)} left')
    return ', '.join(parts)

  def _last_line(self, totals: Totals, seconds: float) -> str:
    parts = [f'{self._title}: {totals.scans} of {self._scans} scans']
    if totals.scans:
      parts.append(f'{totals.rejected} rejected')
    if totals.cubes:
      parts.append(f'{totals.cubes:,} cubes')
    line = ', '.join(parts)
    if totals.read_bytes:
      line += f', {amounts.size(totals.read_bytes)}'
    line += f' in {amounts.duration(seconds)}'
    if totals.read_bytes:
      line += f' ({amounts.speed(totals.read_bytes, seconds)})'
    return line

  def _note_times(self, totals: Totals, seconds: float) -> None:
    """Adds the pass to the file of times, where one is named."""
    path = os.environ.get(TIMES_VARIABLE)
    if not path:
      return
    note = {'pass': self._title, 'seconds': round(seconds, 3)}
    try:
      with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(note | dataclasses.asdict(totals)) + '\n')
    except OSError as error:  # after hours of work, no reason to stop
      logging.warning(
        '%s %s cannot be written: %s', TIMES_VARIABLE, path, error
      )


def watch_scans(
  log: ScanLog, title: str, scan_files: Sequence[luna16.ScanFile]
) -> Watch:
  """Returns a watch of a pass over scans."""
  read_bytes = sum(stored_bytes.count(one.path) for one in scan_files)
  return Watch(log, title, len(scan_files), read_bytes)


def write_counters(folder: str, **passes: Mapping[str, object]) -> None:
  """Writes what passes counted, beside what earlier ones of the folder did.

  Only what does not depend on the machine: the file of any two runs over the
  same scans is the same. `bytes_read` is null for scans in an object store.

  Args:
    folder: of the output.
    **passes: counters of each pass by its name.

  Raises:
    UserError: the file cannot be written.
  """
  path = os.path.join(folder, COUNTERS_FILE)
  known = read_counters(folder) if os.path.exists(path) else {}
  with (
    output_file.replacing(path) as partial,
    open(partial, 'w', encoding='utf-8') as file,
  ):
    json.dump(known | passes, file, indent=1, sort_keys=True)
    file.write('\n')


def read_counters(folder: str) -> dict[str, dict]:
  """Reads what `write_counters` wrote."""
  with open(os.path.join(folder, COUNTERS_FILE), encoding='utf-8') as file:
    return json.load(file)


def count_reasons(reasons: Sequence[str]) -> dict[str, int]:
  """Returns how often each reason occurs, sorted."""
  return {one: reasons.count(one) for one in sorted(set(reasons))}
