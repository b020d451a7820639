"""Disks that are full, cannot be read, or must not be written."""

import contextlib
import os
import re
import shutil
import subprocess

import pytest

from tests.faults import jobs as jobs_lib
from tests.faults import processes
from tests.faults import table

pytestmark = pytest.mark.long

_ALL = (
  'discover_words',
  'tfds build transvw_luna16',
  'tfds build luna16_nodules',
  'train --deterministic',
  'embed_scans',
)
_BUILDS = _ALL[1:3]


@contextlib.contextmanager
def _mounted(folder, *arguments):
  """Mounts something at a new folder; skips the test where it must not."""
  os.makedirs(folder)
  done = subprocess.run(
    ['mount', *arguments, folder], capture_output=True, text=True, check=False
  )
  if done.returncode:
    pytest.skip(f'mounting is not permitted here: {done.stderr.strip()}')
  try:
    yield
  finally:
    subprocess.run(['umount', '--lazy', folder], check=True)


def _remount(folder, options):
  subprocess.run(['mount', '-o', f'remount,{options}', folder], check=True)


def _size(read):
  """Returns the bytes of files or arrays that a job wrote."""
  return sum(
    len(one) if isinstance(one, bytes) else getattr(one, 'nbytes', 0)
    for one in read.values()
  )


def _files(folder):
  for at, _, names in os.walk(folder):
    yield from (os.path.join(at, name) for name in names)


def _largest(folder):
  return max(map(os.path.getsize, _files(folder)))


def _run(job, output, log, server, **limits):
  with processes.Process(job.command(output), log, server, **limits) as process:
    code = process.wait()
    process.wait_for_children()
    return code, process


def _seen(process, output):
  """Returns the line at the end, which is all that a user has to read."""
  line = process.last_line
  # Beam and TFDS tell where it was, too, before it.
  assert re.match(r'(error: |[\w.]*Error: )', line), process.text[-3000:]
  line = line.replace(str(output), 'OUTPUT')
  return f'`{line if len(line) < 200 else line[:197] + "..."}`'


def _finish(job, want, output, log, server):
  """The same command again, where there is nothing in its way."""
  code, process = _run(job, output, log, server)
  assert code == 0, process.text[-3000:]
  jobs_lib.check_same(want, job.read(output))


def _fill(disk):
  """Takes all the room that there is."""
  with (
    contextlib.suppress(OSError),
    open(os.path.join(disk, 'filler'), 'wb', buffering=0) as file,
  ):
    while True:
      file.write(bytes(1 << 20))


@pytest.mark.parametrize('name', _ALL)
def test_a_full_disk(jobs, undisturbed, server, tmp_path, name):
  """Too small from the start, or filled by others while the job runs."""
  job, want = jobs[name], undisturbed(name)
  disk = str(tmp_path / 'disk')
  output = os.path.join(disk, 'output')
  no_room = re.compile('No space left|free, but the job needs')
  with _mounted(disk, '-t', 'tmpfs', '-o', 'size=100m', 'tmpfs'):
    _remount(disk, f'size={max(8, _size(want) // 2048)}k')
    with table.trial(f'disk too small (tmpfs): {name}') as seen:
      code, process = _run(job, output, str(tmp_path / '1.log'), server)
      assert code == 1, process.text[-3000:]
      assert no_room.search(process.last_line), process.text[-3000:]
      seen.append(_seen(process, output))
      job.check_refused(output)
    _remount(disk, 'size=100m')
    shutil.rmtree(output, ignore_errors=True)
    with table.trial(f'disk fills up (tmpfs): {name}') as seen:
      command = job.command(output)
      with processes.Process(command, str(tmp_path / '2.log'), server) as one:
        # A build looks for room before it cuts cubes.
        begun = 'cubes.tmp' if name in _BUILDS else ''
        assert one.wait_until(
          lambda: any(begun in path for path in _files(disk))
        )
        _fill(disk)
        assert one.wait() == 1, one.text[-3000:]
        assert no_room.search(one.last_line), one.text[-3000:]
        seen.append(_seen(one, output))
      job.check_refused(output)
      os.remove(os.path.join(disk, 'filler'))
    _finish(job, want, output, str(tmp_path / 'last.log'), server)


@pytest.mark.parametrize('name', _ALL)
def test_a_limit_of_the_size_of_files(
  jobs, undisturbed, server, tmp_path, name
):
  job, want = jobs[name], undisturbed(name)
  output = str(tmp_path / 'output')
  _finish(job, want, output, str(tmp_path / 'first.log'), server)
  largest = _largest(output)
  shutil.rmtree(output)
  with table.trial(f'limit of file sizes (RLIMIT_FSIZE): {name}') as seen:
    log = str(tmp_path / 'limit.log')
    code, process = _run(job, output, log, server, file_limit=largest // 2)
    assert code == 1, process.text[-3000:]
    assert 'File too large' in process.last_line, process.text[-3000:]
    seen.append(_seen(process, output))
    job.check_refused(output)
  _finish(job, want, output, str(tmp_path / 'last.log'), server)


@pytest.mark.parametrize('name', _ALL)
def test_input_that_is_read_only(jobs, undisturbed, server, tmp_path, name):
  job, want = jobs[name], undisturbed(name)
  output = str(tmp_path / 'output')
  # Where the scans, the data and the model of all jobs lie.
  command = ' '.join(job.command(output))
  source = re.search(r'=(\S*/jobs\d+)/', command)[1]
  view = str(tmp_path / 'view')
  with _mounted(view, '--bind', source):
    _remount(view, 'bind,ro')
    seen_read_only = jobs_lib.replace_folder(job, source, view)
    with table.trial(f'read-only input: {name}', 'nothing, it goes on'):
      with pytest.raises(OSError, match='Read-only'):
        open(os.path.join(view, 'x'), 'x', encoding='utf-8').close()
      _finish(seen_read_only, want, output, str(tmp_path / 'log'), server)


@pytest.mark.parametrize('name', _ALL)
def test_output_that_is_read_only(jobs, undisturbed, server, tmp_path, name):
  job, want = jobs[name], undisturbed(name)
  disk = str(tmp_path / 'disk')
  output = os.path.join(disk, 'output')
  with _mounted(disk, '-t', 'tmpfs', '-o', 'ro', 'tmpfs'):
    with table.trial(f'read-only output: {name}') as seen:
      code, process = _run(job, output, str(tmp_path / 'log'), server)
      assert code == 1, process.text[-3000:]
      assert 'Read-only file system' in process.last_line
      seen.append(_seen(process, output))
      assert os.listdir(disk) == []
    _remount(disk, 'rw')
    _finish(job, want, output, str(tmp_path / 'last.log'), server)


def _break(scan, how):
  """Breaks a scan; returns what puts it right."""
  header, data = f'{scan}.mhd', f'{scan}.raw'
  path = data if how == 'truncated' else header
  os.rename(path, f'{path}.whole')
  if how == 'truncated':
    shutil.copy(f'{path}.whole', path)
    os.truncate(path, os.path.getsize(path) // 2)
  else:
    # Reading it gives EIO, as a broken disk does.
    os.symlink('/proc/self/mem', path)

  def mend():
    os.replace(f'{path}.whole', path)

  return mend


@pytest.mark.parametrize('how', ['truncated', 'Input/output error'])
def test_scans_that_cannot_be_read(jobs, undisturbed, server, tmp_path, how):
  """Strict stops; else the scan is listed, and taken up when it is mended."""
  source = re.search(
    r'--scans=(\S+)', ' '.join(jobs['discover_words'].command('x'))
  )[1]
  scans = str(tmp_path / 'scans')
  shutil.copytree(source, scans)
  some = os.path.join(scans, 'subset1', '1.2.840.001')
  job = jobs_lib.make_discovery(scans, strict='true')
  output = str(tmp_path / 'words')
  mend = _break(some, how)
  with table.trial(f'read error ({how}): discover_words --strict') as seen:
    code, process = _run(job, output, str(tmp_path / '1.log'), server)
    assert code == 1, process.text[-3000:]
    assert how in process.last_line and some in process.last_line
    seen.append(_seen(process, some))
    job.check_refused(output)
    mend()
    want = undisturbed('discover_words')
    _finish(job, want, output, str(tmp_path / '2.log'), server)

  job = jobs_lib.replace_folder(jobs['embed_scans'], source, scans)
  output = str(tmp_path / 'embeddings')
  mend = _break(some, how)
  with table.trial(f'read error ({how}): embed_scans') as seen:
    code, process = _run(job, output, str(tmp_path / '3.log'), server)
    assert code == 0, process.text[-3000:]
    assert 'rejected scans: 1\n' in process.text
    with open(os.path.join(output, 'rejected.csv'), encoding='utf-8') as file:
      assert how in file.read()
    seen.append('`rejected scans: 1`, a line in rejected.csv')
    mend()
    want = undisturbed('embed_scans')
    _finish(job, want, output, str(tmp_path / '4.log'), server)

  # The second pass of a build needs what the first one has seen.
  job = jobs_lib.replace_folder(
    jobs_lib.make_words_build(source, vocabulary=str(tmp_path / 'words')),
    source,
    scans,
  )
  output = str(tmp_path / 'data')
  mend = _break(some, how)
  with table.trial(f'read error ({how}), second pass: {_BUILDS[0]}') as seen:
    code, process = _run(job, output, str(tmp_path / '5.log'), server)
    assert code == 1, process.text[-3000:]
    assert how in process.last_line and some in process.last_line
    seen.append(_seen(process, some))
    job.check_refused(output)
    mend()
    code, process = _run(job, output, str(tmp_path / '6.log'), server)
    assert code == 0, process.text[-3000:]
    found, want = job.read(output), undisturbed(_BUILDS[0])
    # The descriptions name the config.
    shards = [one for one in want if '.tfrecord' in one]
    assert shards
    jobs_lib.check_same(
      {one: want[one] for one in shards}, {one: found[one] for one in shards}
    )
