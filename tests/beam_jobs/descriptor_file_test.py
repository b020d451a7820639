"""descriptors.npz: what is written can be read, all else is one line."""

import os

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
