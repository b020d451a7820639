"""Jobs on scans in an object store, against the same scans in a folder."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from unittest import mock

import fsspec
import pytest

from beam_jobs import progress
from tests import object_store
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_TFDS = os.path.join(os.path.dirname(sys.executable), 'tfds')
_SETTINGS = settings_lib.Settings(
  words=3, xy_border=4, z_border=4, min_distance=1
)
_TWO = (
  '--beam_pipeline_options=runner=FnApiRunner,direct_num_workers=2,'
  'direct_running_mode=multi_processing'
)


@pytest.fixture(name='store', scope='module')
def _store():
  with object_store.start() as variables:
    yield variables


@pytest.fixture(name='scans', scope='module')
def _scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'), train=3)


@pytest.fixture(name='address', scope='module')
def _address(store, scans):
  del store
  return object_store.upload(scans, 'LUNA16')


@pytest.fixture(name='job')
def _job(import_main):
  return import_main('beam_jobs.discover_words')


def _files(folder):
  found = {}
  for name in os.listdir(folder):
    with open(os.path.join(folder, name), 'rb') as file:
      contents = file.read()
    if name == progress.COUNTERS_FILE:
      # How large a scan is in a store is not asked for.
      contents = re.sub(rb'"bytes_read": (\d+|null)', b'', contents)
    found[name] = hashlib.sha256(contents).hexdigest()
  return found


def test_words_are_the_same_and_no_copy_is_left(
  job, scans, address, tmp_path, monkeypatch
):
  staging = tmp_path / 'staging'
  staging.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(staging))
  most = []
  read = reader._read

  def count_copies(*arguments):
    copies = [one for one in os.listdir(staging) if one.startswith('transvw_')]
    most.append(len(copies))
    return read(*arguments)

  monkeypatch.setattr(reader, '_read', count_copies)
  job.run(address, str(tmp_path / 'remote'), _SETTINGS, measure=True)
  # One at a time: 2 for the plan, 5 scans, and once more those with words.
  assert set(most) == {1}
  assert len(most) == 12
  assert not [one for one in os.listdir(staging) if 'transvw_' in one]
  job.run(scans, str(tmp_path / 'local'), _SETTINGS, measure=True)
  assert _files(tmp_path / 'remote') == _files(tmp_path / 'local')


def test_a_scan_that_vanishes_is_rejected(scans, store, job, tmp_path):
  del store
  address = object_store.upload(scans, 'other')
  lost = luna16.find_scans(address)[0]
  object_store.remove(lost.path.replace('.mhd', '.raw'))
  result, _ = job.run(address, str(tmp_path / 'words'), _SETTINGS)
  name = os.path.basename(lost.path)
  assert result.rejected == (
    (
      lost.scan_id,
      'missing_raw',
      f'{lost.path} needs {name.replace("mhd", "raw")} beside it',
    ),
  )


def test_a_store_that_fails_on_the_way_stops_the_job(
  address, job, tmp_path, monkeypatch
):
  """Its scans are not at fault: left out, others would have been words."""

  async def fail(self, *arguments, **named):
    raise ConnectionResetError('the other end has gone')

  monkeypatch.setattr(fsspec.get_filesystem_class('s3'), '_get_file', fail)
  object_store.forget()
  with pytest.raises(errors.UserError) as info:
    job.run(address, str(tmp_path / 'words'), _SETTINGS)
  assert '\n' not in str(info.value)
  assert str(info.value).startswith(f'{address}/subset')
  assert 'the other end has gone' in str(info.value)
  assert 'while running' not in str(info.value)
  object_store.forget()
  assert not (tmp_path / 'words').exists()


def test_no_bucket_is_one_line(store):
  del store
  with pytest.raises(luna16.LayoutError, match=r'^no folder s3://nowhere/x;'):
    luna16.find_scans('s3://nowhere/x')


def test_no_credentials_are_one_line(address):
  with (
    mock.patch.dict(os.environ, {'AWS_EC2_METADATA_DISABLED': 'true'}),
    pytest.raises(storage.StorageError) as info,
  ):
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
      del os.environ[name]
    object_store.forget()
    luna16.find_scans(address)
  object_store.forget()
  assert str(info.value).startswith(f'{address} cannot be read (NoCredentials')
  assert str(info.value).endswith('credentials and the network')


@pytest.mark.long  # s3fs tries again for seconds
def test_a_server_that_is_not_there_is_one_line(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'beam_jobs.discover_words'),
      *('--scans=s3://bucket/LUNA16', f'--output={tmp_path}/words'),
    ],
    capture_output=True,
    text=True,
    cwd=_ROOT,
    env=os.environ
    | {
      'AWS_ENDPOINT_URL': 'http://127.0.0.1:9',
      'AWS_ACCESS_KEY_ID': 'someone',
      'AWS_SECRET_ACCESS_KEY': 'secret',
    },
    check=False,
  )
  assert done.returncode == 1
  line = done.stderr.splitlines()[-1]
  assert line.startswith('error: s3://bucket/LUNA16 cannot be read (Endpoint')
  assert 'http://127.0.0.1:9' in line


def _build(builder, config, manual_dir, data_dir, staging):
  staging.mkdir()
  done = subprocess.run(
    [
      *(_TFDS, 'build', builder, f'--imports=beam_jobs.{builder}'),
      *(f'--manual_dir={manual_dir}', f'--data_dir={data_dir}'),
      *(f'--config={json.dumps({"name": "tiny"} | config)}', _TWO),
    ],
    capture_output=True,
    encoding='utf-8',
    cwd=_ROOT,
    env=os.environ | {'TMPDIR': str(staging)},
    stdin=subprocess.DEVNULL,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert not [one for one in os.listdir(staging) if 'transvw_' in one]
  (version,) = (data_dir / builder / 'tiny').iterdir()
  return _files(version)


@pytest.mark.long
@pytest.mark.parametrize(
  ('builder', 'config'),
  [
    ('transvw_luna16', {'words': 3, 'xy_border': 4, 'z_border': 4}),
    ('luna16_nodules', {'task': 'false_positive_reduction'}),
    ('luna16_nodules', {'task': 'nodule_segmentation'}),
    ('luna16_nodules', {'task': 'lung_segmentation'}),
    ('labelled_scans', {'task': 'classification'}),
  ],
)
def test_two_processes_build_the_same(store, tmp_path, builder, config):
  del store
  scans = tmp_path / 'scans'
  phantom.write_luna16(str(scans), 10, (96, 96, 64), seed=7)
  if builder == 'transvw_luna16':
    config = config | {'min_distance': 1, 'max_soft_tissue': 1.0}
    # True errors are measured where the truth lies on this machine.
    os.remove(scans / phantom.SETTINGS_FILE)
  paths = {one.scan_id: one.path for one in luna16.find_scans(str(scans))}
  with open(scans / 'labels.csv', 'w', newline='', encoding='utf-8') as file:
    rows = csv.writer(file)
    rows.writerow(['scan', 'x', 'y', 'z', 'label'])
    for one in luna16.read_candidates(str(scans)):
      scan = os.path.relpath(paths[one.scan_id], scans)
      rows.writerow([scan, *one.centre, ('vessel', 'nodule')[one.label]])
  address = object_store.upload(scans, tmp_path.name)
  remote, local = (
    _build(builder, config, where, tmp_path / name, tmp_path / f'{name}_copies')
    for name, where in (('remote', address), ('local', scans))
  )
  assert any('-train.tfrecord' in name for name in local)
  assert remote == local
