"""descriptors.npz: what is written can be read, all else is one line."""

import os
import zipfile

import numpy as np
import pytest

from beam_jobs import descriptor_file
from transvw_tf2 import errors
from transvw_tf2.discovery import vocabulary

_IDS = ['1.2', '1.3', '1.10']


def _matrix():
  return np.random.default_rng(0).random((3, 5), np.float32)


def _write(folder, **arrays):
  path = os.path.join(folder, 'other.npz')
  np.savez(path, **arrays)
  return path


def test_reads_what_discovery_writes_in_any_order(tmp_path):
  matrix = _matrix()
  vocabulary.write_descriptors(str(tmp_path), _IDS, matrix)
  path = str(tmp_path / 'descriptors.npz')
  found = descriptor_file.read(path, ['1.10', '1.2'])
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, matrix[[2, 0]])


def test_other_scans_are_named(tmp_path):
  path = _write(tmp_path, scan_id=np.array(_IDS), descriptors=_matrix())
  with pytest.raises(
    errors.UserError, match=r'lack 2 of 3 scans, first 1\.7: give the'
  ):
    descriptor_file.read(path, ['1.2', '1.9', '1.7'])


def test_nan_is_named_if_it_matters(tmp_path):
  matrix = _matrix()
  matrix[1, 4] = np.nan
  path = _write(tmp_path, scan_id=np.array(_IDS), descriptors=matrix)
  with pytest.raises(
    errors.UserError, match=r'NaN or infinite .* 1 of 3 scans, first 1\.3:'
  ):
    descriptor_file.read(path, _IDS)
  assert descriptor_file.read(path, ['1.2', '1.10']).shape == (2, 5)


@pytest.mark.parametrize(
  'arrays',
  [
    {'scan_id': np.array(_IDS), 'descriptors': np.zeros((2, 5), np.float32)},
    {'scan_id': np.array(_IDS), 'descriptors': np.zeros(3, np.float32)},
    {'scan_id': np.array(_IDS), 'descriptors': np.zeros((3, 0), np.float32)},
    {'scan_id': np.array(_IDS), 'descriptors': np.zeros((3, 5), int)},
    {'scan_id': np.arange(3), 'descriptors': np.zeros((3, 5), np.float32)},
  ],
)
def test_wrong_shapes_and_types_are_one_line(tmp_path, arrays):
  path = _write(tmp_path, **arrays)
  with pytest.raises(errors.UserError, match=r'wanted text \(N,\) and float32'):
    descriptor_file.read(path, _IDS)


def test_a_scan_named_twice_is_refused(tmp_path):
  ids = np.array(['1.2', '1.3', '1.2'])
  path = _write(tmp_path, scan_id=ids, descriptors=_matrix())
  with pytest.raises(errors.UserError, match='name 1 scans twice'):
    descriptor_file.read(path, ['1.2'])


def test_other_files_are_one_line(tmp_path):
  paths = [
    str(tmp_path / 'missing.npz'),
    str(tmp_path),
    str(tmp_path / 'text.npz'),
    str(tmp_path / 'empty.npz'),
    str(tmp_path / 'array.npy'),
    _write(tmp_path, scan_id=np.array(_IDS)),
  ]
  (tmp_path / 'text.npz').write_text('no descriptors')
  (tmp_path / 'empty.npz').write_text('')
  np.save(tmp_path / 'array.npy', _matrix())
  for path in paths:
    with pytest.raises(errors.UserError, match='cannot be read') as raised:
      descriptor_file.read(path, _IDS)
    assert '\n' not in str(raised.value)


def test_pickles_are_not_opened(tmp_path):
  ids = np.array(_IDS, object)
  path = _write(tmp_path, scan_id=ids, descriptors=_matrix())
  with pytest.raises(errors.UserError, match='cannot be read'):
    descriptor_file.read(path, _IDS)


def _replace(path, name, content, method=zipfile.ZIP_STORED):
  """Replaces a member of an archive."""
  with zipfile.ZipFile(path) as archive:
    members = {one: archive.read(one) for one in archive.namelist()}
  with zipfile.ZipFile(path, 'w', method) as archive:
    for one, data in (members | {name: content(members[name])}).items():
      archive.writestr(one, data)


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    # NumPy fails on each in a way of its own.
    ('scan_id.npy', lambda data: data.replace(b'}', b' ')),
    ('scan_id.npy', lambda data: data[:-4] + b'\xff\xff\xff\x7f'),
    ('scan_id.npy', lambda data: b'text'),
    ('descriptors.npy', lambda data: data[:6] + b'\x09' + data[7:]),
    ('descriptors.npy', lambda data: data.replace(b'(3, 5)', b'(-3, 5)')),
    ('descriptors.npy', lambda data: data[:100]),
  ],
)
def test_broken_members_are_one_line(tmp_path, name, change):
  path = _write(tmp_path, scan_id=np.array(_IDS), descriptors=_matrix())
  _replace(path, name, change)
  with pytest.raises(errors.UserError, match='cannot be read'):
    descriptor_file.read(path, _IDS)


def test_a_shape_that_the_file_does_not_hold_is_not_allocated(tmp_path):
  path = _write(tmp_path, scan_id=np.array(_IDS), descriptors=_matrix())
  _replace(
    path,
    'descriptors.npy',
    lambda data: data.replace(b'(3, 5), }      ', b'(3, 999999999)}'),
  )
  with pytest.raises(errors.UserError, match=r'\(3, 999999999\) in 188 bytes'):
    descriptor_file.read(path, _IDS)


def test_what_is_packed_beyond_reason_is_not_unpacked(tmp_path):
  path = _write(tmp_path, scan_id=np.array(_IDS), descriptors=_matrix())
  zeros = lambda data: data + bytes(10**7)  # noqa: E731
  _replace(path, 'descriptors.npy', zeros, zipfile.ZIP_DEFLATED)
  with pytest.raises(errors.UserError, match='not safe to read'):
    descriptor_file.read(path, _IDS)
