"""What workers say of scans, and what the driver shows of it."""

import io
import json
import os
import subprocess
import sys
import time

import pytest

from beam_jobs import progress
from tests.beam_jobs import tiny_scans
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_TWO_PROCESSES = (
  '--runner=FnApiRunner',
  '--direct_num_workers=2',
  '--direct_running_mode=multi_processing',
)
_APPEND = """
import sys
from beam_jobs import progress
log = progress.ScanLog(sys.argv[1])
for number in range(300):
  scan_id = f'{sys.argv[2]}.{number}' + 'x' * number
  log.add(progress.Entry(scan_id, cubes=number, read_bytes=7))
"""


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _scan_file(folder, number=0):
  scan_id = tiny_scans.write_scan(folder, number)
  path = os.path.join(folder, f'{scan_id}.mhd')
  return luna16.ScanFile(scan_id, path, 'train')


def _stored(path):
  """Returns the bytes of a scan's two files, by the file system."""
  raw = path.removesuffix('.mhd') + '.raw'
  return os.path.getsize(path) + os.path.getsize(raw)


def test_a_scan_that_is_done_is_a_line(tmp_path):
  scan_file = _scan_file(tmp_path / 'scans')
  log = progress.ScanLog(str(tmp_path))
  with progress.on_scan(log, scan_file) as entry:
    entry.cubes = 5
    time.sleep(0.01)
  ((found,), _) = log.read()
  assert found.seconds >= 0.01
  found.seconds = 0.0
  assert found == progress.Entry(
    scan_file.scan_id, progress.DONE, _stored(scan_file.path), cubes=5
  )
  # A word on each scan, for whoever looks into the file.
  (line,) = (tmp_path / 'progress.jsonl').read_text().splitlines()
  assert json.loads(line)[:2] == [scan_file.scan_id, 'done']


def test_a_scan_that_is_of_no_use_is_a_line_with_the_reason(tmp_path):
  scan_file = luna16.ScanFile('a,"b"\nc', str(tmp_path / 'x.mhd'), 'train')
  log = progress.ScanLog(str(tmp_path))
  with (
    pytest.raises(reader.ScanError, match='missing_file'),
    progress.on_scan(log, scan_file),
  ):
    reader.read_scan(scan_file.path)
  ((found,), _) = log.read()
  assert (found.scan_id, found.outcome) == ('a,"b"\nc', 'missing_file')
  assert found.read_bytes == 0


def test_a_scan_that_was_not_finished_is_no_line(tmp_path):
  log = progress.ScanLog(str(tmp_path))
  with (
    pytest.raises(KeyboardInterrupt),
    progress.on_scan(log, _scan_file(tmp_path / 'scans')),
  ):
    raise KeyboardInterrupt
  assert log.read() == ([], 0)


def test_lines_of_several_processes_do_not_mix(tmp_path):
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _APPEND, str(tmp_path), str(number)], cwd=_ROOT
    )
    for number in range(3)
  ]
  assert [one.wait() for one in processes] == [0, 0, 0]
  entries, end = progress.ScanLog(str(tmp_path)).read()
  assert end == os.path.getsize(tmp_path / 'progress.jsonl')
  assert sorted(one.scan_id for one in entries) == sorted(
    f'{process}.{number}' + 'x' * number
    for process in range(3)
    for number in range(300)
  )
  totals = progress.Totals.of({one.scan_id: one for one in entries})
  assert totals == progress.Totals(
    scans=900, rejected=0, cubes=3 * 299 * 150, read_bytes=6300
  )


def test_only_whole_lines_are_read(tmp_path):
  log = progress.ScanLog(str(tmp_path))
  log.add(progress.Entry('a'))
  path = tmp_path / 'progress.jsonl'
  first = path.stat().st_size
  with open(path, 'a', encoding='utf-8') as file:
    file.write('["b", "done", 1')
  entries, end = log.read()
  assert [one.scan_id for one in entries] == ['a']
  assert end == first
  with open(path, 'a', encoding='utf-8') as file:
    file.write(', 2, 0.5]\nno line\n{"c": 1}\n')
  log.add(progress.Entry('d'))
  entries, end = log.read(end)
  assert entries == [
    progress.Entry('b', 'done', 1, 2, 0.5),
    progress.Entry('d'),
  ]
  assert log.read(end) == ([], end)


def test_a_worker_without_the_folder_goes_on(tmp_path):
  log = progress.ScanLog(str(tmp_path / 'on another machine'))
  with progress.on_scan(log, _scan_file(tmp_path)):
    pass
  with progress.on_scan(None, _scan_file(tmp_path)):
    pass
  assert log.read() == ([], 0)
  assert not (tmp_path / 'on another machine').exists()


def test_a_log_gets_a_line_now_and_then(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, '_LOOK_SECONDS', 0.02)
  monkeypatch.setattr(progress, '_LINE_SECONDS', 0.05)
  log = progress.ScanLog(str(tmp_path))
  with progress.Watch(log, 'scans', 4, 4_000_000):
    log.add(progress.Entry('a', read_bytes=1_000_000, cubes=1200))
    log.add(progress.Entry('b', 'truncated', read_bytes=1_000_000))
    time.sleep(0.3)
    log.add(progress.Entry('b', read_bytes=1_000_000))  # once more
    log.add(progress.Entry('c', read_bytes=1_000_000))
    log.add(progress.Entry('d', 'not_3d', read_bytes=1_000_000))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) >= 2
  assert lines[0].startswith('scans: 2 of 4 scans, 1 rejected, 1,200 cubes, ')
  assert lines[0].endswith(' left')
  assert ' MB/s, ' in lines[0]
  assert lines[-1].startswith(
    'scans: 4 of 4 scans, 1 rejected, 1,200 cubes, 4.0 MB in '
  )


def test_time_left_is_by_bytes(tmp_path, monkeypatch):
  log = progress.ScanLog(str(tmp_path))
  watch = progress.Watch(log, 'scans', 10, 1000)
  watch._start = 0.0
  monkeypatch.setattr(time, 'monotonic', lambda: 600.0)
  details = watch._details(progress.Totals(scans=9, read_bytes=250))
  assert details.endswith(', 30 min left')
  # Where sizes are not known, by scans.
  watch = progress.Watch(log, 'scans', 10, 0)
  watch._start = 0.0
  assert watch._details(progress.Totals(scans=5)).endswith(', 10 min left')
  assert 'left' not in watch._details(progress.Totals())


def test_a_terminal_shows_a_bar(tmp_path, monkeypatch):
  monkeypatch.setattr(progress, '_LOOK_SECONDS', 0.02)
  terminal = _Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  log = progress.ScanLog(str(tmp_path))
  with progress.Watch(log, 'scans', 3, 30):
    log.add(progress.Entry('a', read_bytes=10))
    time.sleep(0.4)
  shown = terminal.getvalue()
  assert 'scans: 1/3 scans' in shown
  assert '0 rejected' in shown
  # The bar goes, one line stays.
  assert shown.rpartition('\r')[2].startswith('scans: 1 of 3 scans, 0 rejected')


def test_a_failed_pass_says_nothing_more(tmp_path, capsys):
  log = progress.ScanLog(str(tmp_path))
  with pytest.raises(ValueError), progress.Watch(log, 'scans', 3, 30):
    raise ValueError
  assert capsys.readouterr().err == ''


def test_times_go_to_a_file_of_their_own(tmp_path, monkeypatch):
  path = tmp_path / 'times.jsonl'
  monkeypatch.setenv('TRANSVW_TIMES', str(path))
  log = progress.ScanLog(str(tmp_path))
  for title in ('one', 'two'):
    with progress.Watch(log, title, 1, 10):
      log.add(progress.Entry('a', read_bytes=10, cubes=3))
      time.sleep(0.05)
  notes = [json.loads(line) for line in path.read_text().splitlines()]
  assert [one.pop('pass') for one in notes] == ['one', 'two']
  for one in notes:
    assert 0.05 <= one.pop('seconds') < 60
    assert one == {'scans': 1, 'rejected': 0, 'cubes': 3, 'read_bytes': 10}
  # What cannot be written does not stop a job.
  monkeypatch.setenv('TRANSVW_TIMES', str(tmp_path))
  with progress.Watch(log, 'three', 1, 10):
    pass


def test_counters_of_several_passes_lie_in_one_file(tmp_path):
  folder = str(tmp_path)
  progress.write_counters(folder, one={'scans': 3}, two={'scans': 1})
  progress.write_counters(folder, two={'scans': 2})
  assert progress.read_counters(folder) == {
    'one': {'scans': 3},
    'two': {'scans': 2},
  }
  assert progress.count_reasons(['b', 'a', 'b']) == {'a': 1, 'b': 2}


def test_counters_are_whole_or_those_of_before(tmp_path):
  folder = str(tmp_path)
  progress.write_counters(folder, one={'scans': 3})
  with pytest.raises(TypeError):
    progress.write_counters(folder, two={'scans': object()})
  assert progress.read_counters(folder) == {'one': {'scans': 3}}
  assert os.listdir(folder) == ['counters.json']


@pytest.mark.long
def test_two_processes_tell_of_each_scan_once(tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans')
  bad = tiny_scans.write_bad(tmp_path / 'scans' / 'subset0')
  output = tmp_path / 'vocabulary'
  # What a killed run left.
  left = tmp_path / 'vocabulary.incomplete' / 'summaries.tmp'
  left.mkdir(parents=True)
  (left / 'progress.jsonl').write_text('["old", "done", 1, 2, 0.5]\n')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'beam_jobs.discover_words'),
      *(f'--scans={scans}', f'--output={output}', '--words=2', '--quality'),
      *('--xy_border=4', '--z_border=4', '--min_distance=1'),
      *_TWO_PROCESSES,
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert '\nscans for words: 11 of 11 scans, 5 rejected, ' in done.stderr
  # 2 words in 4 training and 2 validation patients, at their native size.
  assert (
    '\nscans for cubes: 6 of 6 scans, 0 rejected, 12 cubes, ' in done.stderr
  )
  assert sorted(os.listdir(tmp_path)) == ['scans', 'vocabulary']
  assert not any('progress' in name for name in os.listdir(output))
  found = luna16.find_scans(scans)
  read = [one.path for one in found if one.split != 'held_out']
  sizes = sum(
    os.path.getsize(path) + (os.path.getsize(raw) if os.path.exists(raw) else 0)
    for path in read
    for raw in [path.removesuffix('.mhd') + '.raw']
  )
  assert progress.read_counters(str(output))['discovery'] == {
    'scans_read': 11,
    'bytes_read': sizes,
    'rejected': {reason: 1 for reason in bad.values()},
    'reduced_borders': 0,
    'relaxed_filters': 0,
  }
