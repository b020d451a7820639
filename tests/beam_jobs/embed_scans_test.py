"""Embedding a folder of scans, against the embedding of each scan alone."""

import csv
import dataclasses
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

from absl.testing import flagsaver
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import embedding_files
from beam_jobs import scan_embedder
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2 import output_lock
from transvw_tf2.models import unet3d
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_CUBE = (64, 64, 32)
_STRIDE = (64, 16, 16)
_TWO_PROCESSES = (
  '--runner=FnApiRunner',
  '--direct_num_workers=2',
  '--direct_running_mode=multi_processing',
)


@pytest.fixture(name='network', scope='module')
def _network():
  network = unet3d.UNet3D(base_filters=1, depth=2)
  network.build((None, *_CUBE, 1))
  return network


@pytest.fixture(name='model', scope='module')
def _model(network, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  export.export_encoder(network, path, {})
  return path


@pytest.fixture(name='scans', scope='module')
def _scans(tmp_path_factory):
  """Scans 0 and 1 for training, 2 for validation, 3 held out."""
  folder = tmp_path_factory.mktemp('scans')
  return tiny_scans.write_luna16(folder, train=2, validation=1, held_out=1)


@pytest.fixture(name='job')
def _job(import_main):
  return import_main('beam_jobs.embed_scans')


def _command(*arguments, **named):
  options = [f'--{name}={value}' for name, value in named.items()]
  return [
    *(sys.executable, '-m', 'beam_jobs.embed_scans'),
    *options,
    *arguments,
  ]


def _run(*arguments, **named):
  return subprocess.run(
    _command(*arguments, **named),
    capture_output=True,
    text=True,
    cwd=_ROOT,
    check=False,
  )


def _read_bytes(folder):
  found = {}
  for at, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(at, name)
      with open(path, 'rb') as file:
        found[os.path.relpath(path, folder)] = file.read()
  return found


def _scan_id(number):
  return f'1.2.840.{number:03d}'


def _finish_times(folder):
  return {
    scan_id: [
      os.stat(os.path.join(folder, name, f'{scan_id}.parquet')).st_mtime_ns
      for name in ('places', 'scans')
    ]
    for scan_id in embedding_files.list_scans(folder)
  }


def test_the_vectors_are_those_of_each_scan_alone(
  job, model, scans, tmp_path, capsys
):
  output = str(tmp_path / 'embeddings')
  with flagsaver.flagsaver(
    scans=scans, model=model, output=output, stride=['64', '16', '16']
  ):
    job.main(['embed_scans'])
  first, *lines = capsys.readouterr().out.splitlines()
  assert first.startswith('plan: ')
  assert lines == [
    'embedded scans: 4',
    'finished before: 0',
    'rejected scans: 0',
    f'embeddings: {output}',
  ]
  assert sorted(os.listdir(output)) == [
    *('counters.json', 'places', 'rejected.csv', 'scans', 'settings.json')
  ]
  encoder = encoders.load(model, signatures.CUBES)
  for number in range(4):
    want = embed.embed_scan(encoder, tiny_scans.make_hu(number), _STRIDE)
    found = embedding_files.read_scan(output, _scan_id(number))
    np.testing.assert_array_equal(found.places, want.places)
    assert found.embeddings.dtype == found.mean.dtype == np.float32
    for one, other in (
      (found.embeddings, want.embeddings),
      (found.mean, want.mean),
    ):
      assert one.shape == other.shape
      assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    geometry = tiny_scans.make_geometry(number)
    assert found.geometry == geometry
    middles = [
      np.multiply(place + [31.5, 31.5, 15.5], geometry.spacing)
      for place in want.places
    ]
    np.testing.assert_allclose(found.middles, middles)


def test_the_columns_are_what_other_programs_read(job, model, scans, tmp_path):
  output = str(tmp_path / 'out')
  result = job.run(scans, model, output)
  assert result.counters == {
    'cubes_embedded': 4 * 8,
    'scans_read': 4,
    'scans_written': 4,
  }
  path = os.path.join(output, 'places', f'{_scan_id(3)}.parquet')
  table = pq.ParquetFile(path).read()
  assert table.schema.names == [
    *('scan_id', 'x', 'y', 'z'),
    *('world_x', 'world_y', 'world_z', 'embedding'),
  ]
  assert table.schema.field('embedding').type == pa.list_(pa.float32())
  assert table.num_rows == 8
  row = table.to_pylist()[-1]
  assert row['scan_id'] == _scan_id(3)
  assert (row['x'], row['y'], row['z']) == (16, 16, 16)
  # 47.5 voxels of 0.5 + 3 / 64 mm, 47.5 of 0.75 mm, 31.5 of 2.5 mm.
  place = (row['world_x'], row['world_y'], row['world_z'])
  np.testing.assert_allclose(place, (25.9765625, 35.625, 78.75))
  path = os.path.join(output, 'scans', f'{_scan_id(3)}.parquet')
  (row,) = pq.ParquetFile(path).read().to_pylist()
  assert (row['split'], row['cubes']) == ('held_out', 8)
  embeddings = np.stack(table['embedding'].to_pylist())
  np.testing.assert_allclose(row['mean'], embeddings.mean(axis=0), rtol=1e-6)


def test_only_what_is_missing_is_computed(job, model, scans, tmp_path):
  output = str(tmp_path / 'out')
  job.run(scans, model, output)
  before, times = _read_bytes(output), _finish_times(output)
  for number, name in ((0, 'places'), (2, 'scans')):
    os.remove(os.path.join(output, name, f'{_scan_id(number)}.parquet'))
  # As of a run that was killed.
  left = os.path.join(output, 'places', 'x.parquet.partial-0123')
  shutil.copy(os.path.join(output, 'settings.json'), left)
  os.makedirs(os.path.join(output, '.work-x'))
  assert embedding_files.list_scans(output) == [_scan_id(1), _scan_id(3)]
  with mock.patch.object(
    reader, 'read_scan', side_effect=reader.read_scan
  ) as read:
    result = job.run(scans, model, output)
  paths = [os.path.basename(call.args[0]) for call in read.call_args_list]
  assert sorted(paths) == [f'{_scan_id(0)}.mhd', f'{_scan_id(2)}.mhd']
  assert (result.written, result.skipped) == (2, 2)
  assert _read_bytes(output) == before
  assert not os.path.exists(os.path.join(output, '.work-x'))
  after = _finish_times(output)
  same = [scan_id for scan_id in times if after[scan_id] == times[scan_id]]
  assert same == [_scan_id(1), _scan_id(3)]
  # All are there: no pipeline is run at all.
  result = job.run(scans, model, output)
  assert (result.written, result.skipped, result.counters) == (0, 4, {})


@pytest.mark.long
def test_a_killed_run_keeps_the_scans_it_finished(job, model, scans, tmp_path):
  output = str(tmp_path / 'out')
  # Every cube place: seconds for a scan.
  named = {'scans': scans, 'model': model, 'output': output}
  process = subprocess.Popen(
    _command(**named, stride='4,4,4'), cwd=_ROOT, stdout=subprocess.DEVNULL
  )
  finished = os.path.join(output, 'scans', '*.parquet')
  try:
    deadline = time.monotonic() + 300
    while not glob.glob(finished):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  finished = embedding_files.list_scans(output)
  assert 1 <= len(finished) < 4
  times = _finish_times(output)
  result = job.run(scans, model, output, stride=(4, 4, 4))
  assert (result.written, result.skipped) == (
    4 - len(finished),
    len(finished),
  )
  assert result.counters['scans_read'] == 4 - len(finished)
  assert {key: _finish_times(output)[key] for key in finished} == times


@pytest.mark.long
def test_two_processes_write_the_same_files(job, model, scans, tmp_path):
  job.run(scans, model, str(tmp_path / 'one'))
  done = _run(
    *_TWO_PROCESSES, scans=scans, model=model, output=tmp_path / 'two'
  )
  assert done.returncode == 0, done.stderr
  assert 'embedded scans: 4' in done.stdout
  one, two = _read_bytes(tmp_path / 'one'), _read_bytes(tmp_path / 'two')
  assert one == two
  assert len(one) == 2 * 4 + 3


def test_scans_that_cannot_be_used_are_listed(job, model, tmp_path):
  scans = tiny_scans.write_luna16(
    tmp_path / 'scans', train=1, validation=0, held_out=0
  )
  bad = tiny_scans.write_bad(os.path.join(scans, 'subset0'))
  output = tmp_path / 'out'
  result = job.run(scans, model, str(output))
  assert {row[0]: row[1] for row in result.rejected} == bad
  assert (result.written, result.skipped) == (1, 0)
  assert result.counters['scans_read'] == 6
  assert result.counters['scans_rejected_truncated'] == 1
  with open(output / 'rejected.csv', newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert {row['scan']: row['reason'] for row in rows} == bad
  assert all(row['detail'] for row in rows)
  assert embedding_files.list_scans(str(output)) == [_scan_id(0)]
  # One is mended: it is read again, and so are those that were not.
  tiny_scans.write_scan(os.path.join(scans, 'subset1'), 1)
  os.remove(os.path.join(scans, 'subset0', 'flat.mhd'))
  result = job.run(scans, model, str(output))
  assert {row[0] for row in result.rejected} == set(bad) - {'flat'}
  assert (result.written, result.skipped) == (1, 1)


def test_no_usable_scan_is_one_line(job, model, tmp_path):
  (tmp_path / 'scans' / 'train').mkdir(parents=True)
  tiny_scans.write_bad(tmp_path / 'scans' / 'train')
  with pytest.raises(
    errors.UserError, match=r'none of 5 scans in .* first flat: not_3d: '
  ):
    job.run(str(tmp_path / 'scans'), model, str(tmp_path / 'out'))
  assert (tmp_path / 'out' / 'rejected.csv').exists()


def test_embeddings_that_are_not_finite_are_rejected(job, scans, tmp_path):
  broken = unet3d.UNet3D(base_filters=1, depth=2)
  broken.build((None, *_CUBE, 1))
  beta = broken.encoder.conv_blocks[-1].batch_norm.beta
  beta.assign(np.full(beta.shape, np.inf))
  model = str(tmp_path / 'model')
  export.export_encoder(broken, model, {})
  with pytest.raises(
    errors.UserError, match=r'8 of 8 embeddings of .* hold NaN'
  ):
    job.run(scans, model, str(tmp_path / 'out'))
  assert not os.listdir(tmp_path / 'out' / 'places')


def test_another_model_or_stride_is_refused(
  job, network, model, scans, tmp_path
):
  output = str(tmp_path / 'out')
  job.run(scans, model, output)
  before = _read_bytes(output)
  other = str(tmp_path / 'other')
  network_of_other = unet3d.UNet3D(base_filters=1, depth=2)
  export.export_encoder(network_of_other, other, {})
  with pytest.raises(
    errors.UserError, match=r'holds embeddings of the model .* the same --model'
  ):
    job.run(scans, other, output)
  with pytest.raises(
    errors.UserError, match=r'with the stride 64,64,32, not 64,16,16; give'
  ):
    job.run(scans, model, output, stride=_STRIDE)
  # The same network, exported once more, is the same model.
  again = str(tmp_path / 'again')
  export.export_encoder(network, again, {})
  assert job.run(scans, again, output, stride=_CUBE).skipped == 4
  assert _read_bytes(output) == before


def test_a_folder_in_use_is_refused(job, model, scans, tmp_path):
  """Else the second run would take away what the first has half-written."""
  output = tmp_path / 'out'
  left = output / 'places' / 'x.parquet.partial-0123'
  job.run(scans, model, str(output))
  left.write_text('')
  with (
    output_lock.hold(str(output)),
    pytest.raises(errors.UserError, match='another run is writing to'),
  ):
    job.run(scans, model, str(output))
  assert left.exists()


def test_wrong_arguments_are_one_line(job, model, scans, tmp_path):
  output = str(tmp_path / 'out')
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'notes.txt').write_text('kept')
  (tmp_path / 'file').write_text('kept')
  for arguments, text in (
    ((scans + 'x', model, output), 'no folder'),
    ((scans, str(tmp_path), output), 'is not a SavedModel'),
    ((scans, model, str(tmp_path / 'mine')), 'is no folder of embeddings'),
    ((scans, model, str(tmp_path / 'file')), 'is no folder of embeddings'),
    ((scans, model, str(tmp_path / 'file' / 'x')), 'cannot be written'),
  ):
    with pytest.raises(errors.UserError, match=text):
      job.run(*arguments)
  with pytest.raises(errors.UserError, match='from 1,1,1 to 64,64,32'):
    job.run(scans, model, output, stride=(65, 1, 1))
  assert not os.path.exists(output)
  assert sorted(os.listdir(tmp_path)) == ['file', 'mine']

  done = _run('--strides=8,8', scans=scans, model=model, output=output)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: unknown flag --strides')
  assert 'Traceback' not in done.stderr


def test_a_model_without_fingerprint_is_one_line(job, model, scans, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(model, copy)
  os.remove(copy / 'fingerprint.pb')
  with pytest.raises(errors.UserError, match='has no fingerprint'):
    job.run(scans, str(copy), str(tmp_path / 'out'))


def test_a_full_disk_stops_the_job_in_one_line(job, model, scans, tmp_path):
  with (
    mock.patch.object(pq, 'write_table', side_effect=OSError(28, 'No space')),
    mock.patch.object(
      reader, 'read_scan', side_effect=reader.read_scan
    ) as read,
    pytest.raises(errors.UserError, match=r'cannot be written .*No space'),
  ):
    job.run(scans, model, str(tmp_path / 'out'))
  assert read.call_count == 1
  assert os.listdir(tmp_path / 'out' / 'places') == []


def test_a_scan_is_written_before_the_next_is_read(job, model, scans, tmp_path):
  written = []

  def read(path, **named):
    written.append(len(os.listdir(tmp_path / 'out' / 'scans')))
    return read_scan(path, **named)

  read_scan = reader.read_scan
  with mock.patch.object(reader, 'read_scan', side_effect=read):
    job.run(scans, model, str(tmp_path / 'out'))
  assert written == [0, 1, 2, 3]


def test_the_encoder_is_loaded_once(job, model, scans, tmp_path):
  with mock.patch.object(encoders, 'load', side_effect=encoders.load) as load:
    job.run(scans, model, str(tmp_path / 'out'))
  assert load.call_count == 2  # once more for its settings
  handler = scan_embedder.ScanEncoderHandler(model, _CUBE, 8)
  hu = tiny_scans.make_hu(0)
  assert handler.get_num_bytes([hu]) == hu.nbytes


def test_damaged_files_are_one_line(job, model, scans, tmp_path):
  output = str(tmp_path / 'out')
  with pytest.raises(errors.UserError, match=r'settings\.json cannot be read'):
    embedding_files.read_settings(output)
  with pytest.raises(errors.UserError, match='no embeddings in'):
    embedding_files.list_scans(output)
  job.run(scans, model, output)
  with pytest.raises(errors.UserError, match=r"of scan 'x' .* there are 4"):
    embedding_files.read_scan(output, 'x')
  path = os.path.join(output, 'places', f'{_scan_id(0)}.parquet')
  os.truncate(path, 100)
  with pytest.raises(errors.UserError, match=r'cannot be read .* again'):
    embedding_files.read_scan(output, _scan_id(0))
  with open(os.path.join(output, 'settings.json'), encoding='utf-8') as file:
    contents = json.load(file)
  settings = dataclasses.asdict(embedding_files.read_settings(output))
  assert contents == {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in settings.items()
  }
