"""NumPy files: what they may hold and where the spacing comes from."""

import os

from absl import logging
import numpy as np
import pytest

from tests.scans import scan_files
from transvw_tf2.scans import reader


def _refused(path):
  with pytest.raises(reader.ScanError) as caught:
    reader.read_scan(os.fspath(path))
  assert '\n' not in str(caught.value)
  return caught.value


@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('dtype', ['int16', 'float16', 'float32', 'float64'])
def test_reads_hu_in_x_y_z(tmp_path, dtype, order):
  hu = scan_files.make_hu()
  array = np.asarray(hu.astype(dtype), order=order)
  np.save(tmp_path / 'a.npy', array)
  got = reader.read_scan(os.fspath(tmp_path / 'a.npy')).hu
  np.testing.assert_array_equal(got, np.rint(array.astype(np.float64)))
  assert got.flags.c_contiguous and got.flags.writeable


@pytest.mark.parametrize(
  'array',
  [
    np.array([[[None]]], object),
    np.zeros((64, 64, 32), complex),
    np.zeros((64, 64, 32), bool),
    np.zeros((64, 64, 32), 'S4'),
    np.zeros((64, 64, 32), [('a', 'i2')]),
    np.zeros((0, 64, 32), np.int16),
  ],
)
def test_only_numbers_are_taken(tmp_path, array):
  np.save(tmp_path / 'a.npy', array, allow_pickle=True)
  assert _refused(tmp_path / 'a.npy').reason == 'unreadable'


def test_an_npz_or_a_pickle_by_that_name(tmp_path):
  with open(tmp_path / 'a.npy', 'wb') as file:
    np.savez(file, a=scan_files.make_hu())
  assert _refused(tmp_path / 'a.npy').reason == 'unreadable'
  (tmp_path / 'b.npy').write_bytes(b'\x80\x04cos\nsystem\n.')
  assert _refused(tmp_path / 'b.npy').reason == 'unreadable'


@pytest.mark.parametrize(
  ('shape', 'reason'),
  [
    ('(64, 64, 99999999)', 'truncated'),
    ('(99999999999, 99999999999, 99999999999)', 'unreadable'),
    ('(-64, 64, 32)', 'unreadable'),
    ('(64, 64, 3.2)', 'unreadable'),
    ('(64, 64, "a")', 'unreadable'),
    ('((((((((((64', 'unreadable'),
    ('__import__("os").getpid()', 'unreadable'),
  ],
)
def test_headers_that_lie(tmp_path, shape, reason):
  header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}\n"
  with open(tmp_path / 'a.npy', 'wb') as file:
    file.write(b'\x93NUMPY\x01\x00')
    file.write(len(header).to_bytes(2, 'little') + header.encode())
    file.write(bytes(64 * 64 * 32 * 2))
  assert _refused(tmp_path / 'a.npy').reason == reason


def test_without_spacing_there_is_a_warning(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: warnings.append(text % args)
  )
  np.save(tmp_path / 'a.npy', scan_files.make_hu())
  scan = reader.read_scan(os.fspath(tmp_path / 'a.npy'))
  assert scan.geometry.spacing == (1.0, 1.0, 1.0)
  assert warnings == [f'no {tmp_path / "a.json"}: taking 1 mm spacing']
  (tmp_path / 'a.json').write_text('{"spacing": [0.5, 0.5, 1]}')
  reader.read_scan(os.fspath(tmp_path / 'a.npy'))
  assert len(warnings) == 1


@pytest.mark.parametrize(
  'text',
  [
    *('', '{}', '[]', '[1, 1, 1]', '{"spacing": 1}', '{"spacing": "111"}'),
    *('{"spacing": [1, 1]}', '{"spacing": [1, 1, 1, 1]}'),
    *('{"spacing": [1, 0, 1]}', '{"spacing": [1, -1, 1]}'),
    *('{"spacing": [1, NaN, 1]}', '{"spacing": [1, null, 1]}'),
    '[' * 100_000,
  ],
)
def test_spacing_that_is_none(tmp_path, text):
  np.save(tmp_path / 'a.npy', scan_files.make_hu())
  (tmp_path / 'a.json').write_text(text)
  assert _refused(tmp_path / 'a.npy').reason == 'bad_geometry'


def test_spacing_that_is_not_text_or_a_folder(tmp_path):
  np.save(tmp_path / 'a.npy', scan_files.make_hu())
  (tmp_path / 'a.json').write_bytes(b'\xff\xfe\x00')
  assert _refused(tmp_path / 'a.npy').reason == 'bad_geometry'
  os.remove(tmp_path / 'a.json')
  (tmp_path / 'a.json').mkdir()
  assert _refused(tmp_path / 'a.npy').reason == 'unreadable'


def test_a_header_longer_than_the_file_is_not_allocated(tmp_path):
  path = tmp_path / 'a.npy'
  path.write_bytes(b'\x93NUMPY\x02\x00\xff\xff\xff\xff{')
  error = _refused(path)
  # NumPy, asked first, would take 4 GB before it finds out.
  assert error.reason == 'truncated'
  assert '4294967295 bytes' in str(error)


@pytest.mark.parametrize('number', ['1' + '0' * 400, '[' * 100_000])
def test_absurd_spacing(tmp_path, number):
  np.save(tmp_path / 'a.npy', scan_files.make_hu())
  (tmp_path / 'a.json').write_text(f'{{"spacing": [1, 1, {number}]}}')
  assert _refused(tmp_path / 'a.npy').reason == 'bad_geometry'
