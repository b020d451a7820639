"""Files that are cut short or damaged are refused, whole ones are not."""

import gzip
import os
import types
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from tests.scans import scan_files
from transvw_tf2.scans import reader
from transvw_tf2.scans import voxel_data

_FORMATS = [
  *(('.mhd', False), ('.mhd', True), ('.mha', False), ('.mha', True)),
  *(('.nii', False), ('.nii.gz', True), ('.npy', False)),
  *(('.nrrd', False), ('.nrrd', True), ('.nhdr', False), ('.nhdr', True)),
]
_COMPRESSED = [one for one, compress in _FORMATS if compress]


def _write(folder, suffix, compress, hu):
  """Returns the path of a scan and of the file that holds its voxels."""
  path = os.fspath(folder / f'a{suffix}')
  if suffix == '.npy':
    np.save(path, hu)
  else:
    scan_files.write(path, hu, compress=compress)
  names = [os.path.join(folder, name) for name in os.listdir(folder)]
  return path, max(names, key=os.path.getsize)


@pytest.mark.parametrize(('suffix', 'compress'), _FORMATS)
@pytest.mark.parametrize('missing', [1, 4, 1000, 0.5])
def test_a_file_cut_short_is_refused(tmp_path, suffix, compress, missing):
  path, data = _write(tmp_path, suffix, compress, scan_files.make_hu())
  assert reader.read_scan(path).hu.shape == scan_files.SIZE
  bytes_there = os.path.getsize(data)
  if missing < 1:
    missing = int(bytes_there * missing)
  os.truncate(data, bytes_there - missing)
  with pytest.raises(reader.ScanError) as caught:
    reader.read_scan(path)
  assert caught.value.reason == 'truncated', caught.value
  assert os.path.basename(data) in caught.value.detail


@pytest.mark.parametrize('suffix', _COMPRESSED)
def test_damaged_compressed_data_are_refused(tmp_path, suffix):
  hu = scan_files.make_hu() // 8  # so that there is something to compress
  hu[0, 0, 0] = -900
  path, data = _write(tmp_path, suffix, True, hu)
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)
  with open(data, 'rb') as file:
    whole = file.read()
  rng = np.random.default_rng(0)
  for place in rng.integers(len(whole) // 4, len(whole) - 8, 10):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << rng.integers(8)
    with open(data, 'wb') as file:
      file.write(damaged)
    with pytest.raises(reader.ScanError) as caught:
      reader.read_scan(path)
    assert caught.value.reason in ('damaged', 'truncated')


def test_nifti_in_several_gzip_members_is_read(tmp_path):
  """As bgzip and concatenation write them."""
  hu = scan_files.make_hu()
  path = scan_files.write(tmp_path / 'a.nii', hu)
  with open(path, 'rb') as file:
    whole = file.read()
  parts = [
    gzip.compress(whole[i : i + 50_000]) for i in range(0, 300_000, 50_000)
  ]
  joined = os.fspath(tmp_path / 'b.nii.gz')
  with open(joined, 'wb') as file:
    file.write(b''.join(parts) + gzip.compress(b''))
  np.testing.assert_array_equal(reader.read_scan(joined).hu, hu)
  with open(joined, 'wb') as file:
    file.write(b''.join(parts[:-2]))
  with pytest.raises(reader.ScanError, match='truncated'):
    reader.read_scan(joined)


def test_bytes_after_the_voxels_do_no_harm(tmp_path):
  hu = scan_files.make_hu()
  for suffix, compress in _FORMATS:
    folder = tmp_path / f'{suffix}{compress}'
    folder.mkdir()
    path, data = _write(folder, suffix, compress, hu)
    with open(data, 'ab') as file:
      file.write(b'\x00' * 512)
    np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


@pytest.mark.parametrize('suffix', ['.mha', '.nii.gz', '.nrrd'])
def test_a_small_file_of_a_huge_scan_is_refused_from_its_size(
  tmp_path, suffix, monkeypatch
):
  path, _ = _write(tmp_path, suffix, True, np.zeros((64, 64, 64), np.int16))
  with open(path, 'rb') as file:
    whole = file.read()
  if suffix == '.nii.gz':
    header = bytearray(gzip.decompress(whole))
    header[42:48] = np.array([1000, 1000, 1000], '<i2').tobytes()
    whole = gzip.compress(header)
  else:
    whole = whole.replace(b'64 64 64', b'1000 1000 1000')
  with open(path, 'wb') as file:
    file.write(whole)

  def fail(*args):
    raise AssertionError('the voxels were read')

  monkeypatch.setattr(sitk, 'ReadImage', fail)
  with pytest.raises(reader.ScanError, match='cannot hold'):
    reader.read_scan(path)
  with pytest.raises(reader.ScanError, match='cannot hold'):
    reader.read_geometry(path)


def test_a_stream_that_inflates_to_more_is_not_followed(tmp_path, monkeypatch):
  """A small image in front of what inflates to gigabytes."""
  path = scan_files.write(tmp_path / 'a.nii', scan_files.make_hu((64, 64, 32)))
  with open(path, 'rb') as file:
    whole = file.read()
  bomb = os.fspath(tmp_path / 'b.nii.gz')
  with gzip.open(bomb, 'wb') as file:
    file.write(whole + bytes(200 << 20))
  asked = []

  class Counting:
    def __init__(self, **kwargs):
      self._stream = zlib.decompressobj(**kwargs)

    def decompress(self, block):
      out = self._stream.decompress(block)
      asked.append(len(out))
      return out

    def __getattr__(self, name):
      return getattr(self._stream, name)

  monkeypatch.setattr(
    voxel_data,
    'zlib',
    types.SimpleNamespace(decompressobj=Counting, error=zlib.error),
  )
  assert reader.read_scan(bomb).hu.shape == (64, 64, 32)
  assert sum(asked) < 40 << 20
  assert max(asked) < 17 << 20


def test_the_largest_scan_that_is_read():
  voxel_data.check_size('a', (1024, 1024, 1024))
  with pytest.raises(reader.ScanError, match=r'too_large: a claims 1024 x'):
    voxel_data.check_size('a', (1024, 1024, 1025))
