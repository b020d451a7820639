"""Scans in an object store, against the same scans in a local folder."""

import errno
import gzip
import json
import os
import tempfile
from unittest import mock
import uuid

import fsspec
import numpy as np
import pytest

from tests.scans import scan_files
from transvw_tf2.scans import geometry
from transvw_tf2.scans import luna16
from transvw_tf2.scans import masks
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage


@pytest.fixture(name='staging')
def _staging(tmp_path, monkeypatch):
  """The folder where copies are made."""
  folder = tmp_path / 'staging'
  folder.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(folder))
  return folder


def _upload(folder):
  """Copies a local folder into a store in memory; returns its address."""
  address = f'memory://{uuid.uuid4().hex}/scans'
  system, root = fsspec.core.url_to_fs(address)
  system.put(os.fspath(folder) + '/', root, recursive=True)
  return address


def _assert_same(found, want):
  np.testing.assert_array_equal(found.hu, want.hu)
  assert found.geometry == want.geometry


def _write_all(folder):
  """Writes a scan in each layout; returns their names."""
  hu = scan_files.make_hu()
  for name in ('a.mhd', 'b.mha', 'c.nii.gz', 'd.nrrd', 'e.nhdr'):
    scan_files.write(folder / name, hu, spacing=(0.5, 0.75, 2.0))
  scan_files.write(folder / 'f.mhd', hu, compress=1)
  np.save(folder / 'g.npy', hu)
  (folder / 'g.json').write_text(json.dumps({'spacing': [0.5, 1.0, 3.0]}))
  scan_files.write_series(folder / 'h', hu)
  return [
    *('a.mhd', 'b.mha', 'c.nii.gz', 'd.nrrd', 'e.nhdr', 'f.mhd', 'g.npy', 'h')
  ]


def test_scans_of_every_layout_are_the_same(tmp_path, staging):
  local = tmp_path / 'scans'
  local.mkdir()
  names = _write_all(local)
  address = _upload(local)
  for name in names:
    want = reader.read_scan(str(local / name))
    _assert_same(reader.read_scan(f'{address}/{name}'), want)
    assert reader.read_geometry(f'{address}/{name}') == want.geometry
    assert not os.listdir(staging)
  _assert_same(
    reader.read_scan(f'{address}/h/'), reader.read_scan(str(local / 'h'))
  )


def test_only_the_scan_itself_is_copied(tmp_path, staging):
  local = tmp_path / 'scans'
  local.mkdir()
  _write_all(local)
  address = _upload(local)
  for name, want in (
    ('a.mhd', ['a.mhd', 'a.raw']),
    ('b.mha', ['b.mha']),
    ('g.npy', ['g.json', 'g.npy']),
    ('h', ['h']),
  ):
    with storage.staged(f'{address}/{name}') as path:
      assert os.path.dirname(os.path.dirname(path)) == str(staging)
      assert sorted(os.listdir(os.path.dirname(path))) == want
    assert not os.listdir(staging)


def test_a_local_scan_is_not_copied(tmp_path, staging):
  path = scan_files.write(tmp_path / 'a.mha', scan_files.make_hu())
  with storage.staged(path) as local:
    assert local == path
    assert not os.listdir(staging)
  assert os.path.exists(path)


def test_errors_name_the_address_and_leave_no_copy(tmp_path, staging):
  local = tmp_path / 'scans'
  local.mkdir()
  scan_files.write(local / 'a.mhd', scan_files.make_hu())
  os.remove(local / 'a.raw')
  scan_files.write(local / 'b.mhd', scan_files.make_hu())
  os.truncate(local / 'b.raw', 1000)
  (local / 'c.nii.gz').write_bytes(gzip.compress(b'no scan'))
  # Would lead out of the folder of copies.
  (local / 'd').mkdir()
  scan_files.write_meta(
    local / 'd', scan_files.make_hu(), ElementDataFile='../b.raw'
  )
  # Names that no local file can have.
  for name, data in (('n', 'a\0.raw'), ('l', 'a' * 300)):
    (local / name).mkdir()
    scan_files.write_meta(
      local / name, scan_files.make_hu(), ElementDataFile=data
    )
  address = _upload(local)
  for name, reason in (
    ('n/x.mhd', 'missing_raw'),
    ('l/x.mhd', 'missing_raw'),
    ('a.mhd', 'missing_raw'),
    ('b.mhd', 'truncated'),
    ('c.nii.gz', 'unreadable'),
    ('d/x.mhd', 'unreadable'),
    ('e.mhd', 'missing_file'),
    ('d', 'not_one_series'),
  ):
    errors = []
    for folder in (address, str(local)):
      with pytest.raises(reader.ScanError) as info:
        reader.read_scan(f'{folder}/{name}')
      errors.append((info.value.reason, info.value.detail))
    assert errors[0][0] == errors[1][0] == reason
    # The same text, with the address in place of the folder.
    texts = [
      detail.replace(folder, 'FOLDER')
      for (_, detail), folder in zip(errors, (address, str(local)), strict=True)
    ]
    assert texts[0] == texts[1]
    assert not os.listdir(staging)


def test_what_is_raised_within_leaves_no_copy(tmp_path, staging):
  scan_files.write(tmp_path / 'a.mha', scan_files.make_hu())
  address = _upload(tmp_path)
  with (
    pytest.raises(KeyboardInterrupt),
    storage.staged(f'{address}/a.mha'),
  ):
    raise KeyboardInterrupt
  assert not os.listdir(staging)


def test_a_copy_that_is_cut_short_is_no_truncated_scan(tmp_path, monkeypatch):
  """The network is to blame, and the scan must not be left out."""
  scan_files.write(tmp_path / 'a.mha', scan_files.make_hu())
  address = _upload(tmp_path)
  system, _ = fsspec.core.url_to_fs(address, use_listings_cache=False)

  def cut(remote, local, **kwargs):
    del remote, kwargs
    with open(local, 'wb') as file:
      file.write(b'1234')

  monkeypatch.setattr(type(system), 'get_file', lambda self, *a, **k: cut(*a))
  with pytest.raises(
    storage.StorageError, match=rf'^{address}/a.mha .* 4 of \d+ bytes came'
  ):
    reader.read_scan(f'{address}/a.mha')


def test_a_full_local_disk_is_not_taken_for_the_store(
  tmp_path, staging, monkeypatch
):
  scan_files.write(tmp_path / 'a.mha', scan_files.make_hu())
  address = _upload(tmp_path)
  system, _ = fsspec.core.url_to_fs(address, use_listings_cache=False)
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(type(system), 'get_file', mock.Mock(side_effect=full))
  with pytest.raises(
    storage.StorageError, match=rf'copied to {staging} .* left .* set TMPDIR'
  ):
    reader.read_scan(f'{address}/a.mha')
  assert not os.listdir(staging)


def test_folders_are_listed_alike(tmp_path):
  for name in ('subset0/1.mhd', 'subset0/1.raw', 'subset5/2.mha', 'notes.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('no scan')
  address = _upload(tmp_path)
  for folder in ('', '/subset0'):
    want = storage.list_folder(f'{tmp_path}{folder}')
    assert storage.list_folder(address + folder) == want
  assert storage.list_folder(address) == [
    ('notes.txt', False),
    ('subset0', True),
    ('subset5', True),
  ]
  found, want = luna16.find_scans(address), luna16.find_scans(str(tmp_path))
  assert [one.scan_id for one in found] == ['1', '2']
  for one, other in zip(found, want, strict=True):
    assert one.path == other.path.replace(str(tmp_path), address)
    assert (one.scan_id, one.split) == (other.scan_id, other.split)
  with pytest.raises(luna16.LayoutError, match=f'no folder {address}/nope;'):
    luna16.find_scans(f'{address}/nope')


def test_tables_and_masks(tmp_path, staging):
  (tmp_path / 'annotations.csv').write_text(
    'seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,3,4\n'
  )
  folder = tmp_path / luna16.LUNG_MASK_FOLDER
  folder.mkdir()
  mask = np.zeros(scan_files.SIZE, np.uint8)
  mask[5:20, 6:30, 7:9] = 3
  scan_files.write(folder / 'a.mhd', mask, compress=1)
  address = _upload(tmp_path)
  assert luna16.read_annotations(address) == [
    luna16.Annotation('a', (1.0, 2.0, 3.0), 4.0)
  ]
  path = luna16.lung_mask_path(address, 'a')
  assert path == f'{address}/{luna16.LUNG_MASK_FOLDER}/a.mhd'
  assert luna16.lung_mask_path(address, 'b') is None
  assert masks.find_mask(f'{address}/{luna16.LUNG_MASK_FOLDER}', 'a') == path
  where = geometry.Geometry(scan_files.SIZE, spacing=(1.0, 1.0, 1.0))
  found = masks.read_mask(path, where)
  np.testing.assert_array_equal(found, mask > 0)
  with pytest.raises(reader.ScanError, match=f'{address}/b.mhd does not exist'):
    masks.read_mask(f'{address}/b.mhd', where)
  with pytest.raises(luna16.LayoutError, match=f'no candidates.* in {address}'):
    luna16.read_candidates(address)
  assert not os.listdir(staging)


def test_a_store_that_is_not_known_is_one_line():
  with pytest.raises(storage.StorageError, match=r'^nosuch://b/s cannot be'):
    luna16.find_scans('nosuch://b/s')


@pytest.mark.parametrize(
  ('path', 'remote'),
  [
    ('s3://bucket/LUNA16', True),
    ('gs://bucket', True),
    ('/scans/s3://bucket', False),
    ('scans/x://y.mhd', False),
    ('s3:/bucket', False),
    ('C:/scans', False),
  ],
)
def test_only_what_begins_so_is_an_address(path, remote):
  assert storage.is_remote(path) == remote


def test_a_name_that_looks_like_an_address_stays_a_file(tmp_path):
  """Such as one that came with an upload."""
  (tmp_path / 's3:').mkdir()
  path = scan_files.write(tmp_path / 's3:' / 'a.mha', scan_files.make_hu())
  odd = path.replace('s3:/', 's3://')
  _assert_same(reader.read_scan(odd), reader.read_scan(path))
