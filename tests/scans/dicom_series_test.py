"""DICOM folders: order, places, HU, and what is no volume."""

import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from tests.scans import dicom_files
from tests.scans import scan_files
from transvw_tf2.scans import reader

_SIZE = (64, 65, 32)


def _refused(folder):
  with pytest.raises(reader.ScanError) as caught:
    reader.read_scan(os.fspath(folder))
  assert '\n' not in str(caught.value)
  assert str(folder) in caught.value.detail
  return caught.value


@pytest.mark.parametrize(
  'direction',
  [
    np.eye(3),
    np.diag([1.0, 1.0, -1.0]),
    np.diag([-1.0, -1.0, 1.0]),
    scan_files.rotation(0, 20),
    # A tilted gantry: the slices are not stacked along their normal.
    np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.98]]),
    # Sagittal slices: rows run back, columns down.
    np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
  ],
)
def test_every_voxel_lies_where_simpleitk_says(tmp_path, direction):
  hu = scan_files.make_hu(_SIZE)
  folder = scan_files.write_series(tmp_path, hu, direction=direction)
  scan = reader.read_scan(folder, check=False)
  assert scan.hu.dtype == np.int16
  assert scan.geometry == reader.read_geometry(folder)
  assert scan.hu.shape == scan.geometry.size
  assert np.diag(np.reshape(scan.geometry.direction, (3, 3))).min() > 0.9
  series = sitk.ImageSeriesReader()
  series.SetFileNames(series.GetGDCMSeriesFileNames(folder))
  series.ForceOrthogonalDirectionOff()
  image = series.Execute()
  for index in np.random.default_rng(0).integers(0, _SIZE, (100, 3)):
    voxel = [int(one) for one in index]
    there = scan.geometry.world_to_voxel(
      image.TransformIndexToPhysicalPoint(voxel)
    )
    np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
    assert scan.hu[tuple(np.rint(there).astype(int))] == image[voxel]


def test_slices_are_ordered_by_position_and_hold_hu(tmp_path):
  hu = scan_files.make_hu(_SIZE)
  scan = reader.read_scan(scan_files.write_series(tmp_path, hu))
  np.testing.assert_array_equal(scan.hu, hu)
  np.testing.assert_allclose(scan.geometry.spacing, (0.7, 0.8, 2.5))
  np.testing.assert_allclose(scan.geometry.origin, (-10, -20, -30))


def test_rescale_slope_is_applied(tmp_path):
  hu = scan_files.make_hu(_SIZE) // 2 * 2
  folder = scan_files.write_series(tmp_path, hu, slope=2)
  np.testing.assert_array_equal(reader.read_scan(folder).hu, hu)
  # What the files hold is (hu + 1024) / 2: reading it raw would be seen.
  assert hu.min() < -900


def test_other_files_and_folders_beside_the_slices(tmp_path):
  hu = scan_files.make_hu(_SIZE)
  folder = scan_files.write_series(tmp_path, hu)
  (tmp_path / 'readme.txt').write_text('about this scan')
  (tmp_path / 'below').mkdir()
  np.testing.assert_array_equal(reader.read_scan(folder).hu, hu)


def test_the_pixels_are_read_once(tmp_path, monkeypatch):
  folder = scan_files.write_series(tmp_path, scan_files.make_hu(_SIZE))
  calls = []
  read = sitk.ReadImage
  monkeypatch.setattr(
    sitk, 'ReadImage', lambda names: calls.append(names) or read(names)
  )
  reader.read_geometry(folder)
  assert calls == []
  reader.read_scan(folder)
  assert len(calls) == 1


def test_folders_without_a_series(tmp_path):
  error = _refused(tmp_path)
  assert error.reason == 'not_one_series'
  assert 'holds 0 DICOM series' in error.detail
  (tmp_path / 'a.txt').write_text('not DICOM')
  (tmp_path / 'a.dcm').write_bytes(b'')
  assert _refused(tmp_path).reason == 'not_one_series'


def test_a_folder_of_two_series(tmp_path):
  hu = scan_files.make_hu(_SIZE)
  scan_files.write_series(tmp_path, hu)
  scan_files.write_series(tmp_path, hu, uid='1.2.826.0.1.3680043.8.498.2')
  error = _refused(tmp_path)
  assert error.reason == 'not_one_series'
  assert 'holds 2 DICOM series' in error.detail


def test_a_missing_slice(tmp_path):
  folder = scan_files.write_series(
    tmp_path, scan_files.make_hu(_SIZE), skip=(10,)
  )
  error = _refused(folder)
  assert error.reason == 'uneven_slices'
  assert '2.500 to 5.000 mm apart' in error.detail
  with pytest.raises(reader.ScanError, match='uneven_slices'):
    reader.read_geometry(folder)


@pytest.mark.parametrize('left', [0, 100, 3000])
def test_a_slice_that_is_cut_short(tmp_path, left):
  """DICOM readers pass over such a file without a word."""
  folder = scan_files.write_series(tmp_path, scan_files.make_hu(_SIZE))
  os.truncate(tmp_path / '1_015.dcm', left)
  wanted = 'truncated' if left > 500 else 'uneven_slices'
  assert _refused(folder).reason == wanted


def test_the_last_slice_is_cut_short(tmp_path):
  """Without it the others make a volume."""
  hu = scan_files.make_hu((64, 65, 33))
  folder = scan_files.write_series(tmp_path, hu)
  last = max(
    (tmp_path / name for name in os.listdir(folder)),
    key=lambda path: sitk.ReadImage(os.fspath(path)).GetOrigin()[2],
  )
  os.truncate(last, last.stat().st_size - 1)
  error = _refused(folder)
  assert error.reason == 'truncated'
  assert last.name in error.detail


@pytest.mark.parametrize(
  'syntax',
  [dicom_files.IMPLICIT, dicom_files.EXPLICIT, dicom_files.BIG_ENDIAN],
)
def test_transfer_syntaxes(tmp_path, syntax):
  hu = scan_files.make_hu(_SIZE)
  folder = scan_files.write_series(tmp_path, hu)
  dicom_files.rewrite(folder, lambda data: dicom_files.encode(data, syntax))
  np.testing.assert_array_equal(reader.read_scan(folder).hu, hu)


@pytest.mark.parametrize('compressor', ['JPEG', 'JPEG2000'])
def test_compressed_slices(tmp_path, compressor):
  hu = scan_files.make_hu(_SIZE)
  folder = scan_files.write_series(tmp_path, hu, compressor=compressor)
  np.testing.assert_array_equal(reader.read_scan(folder).hu, hu)


@pytest.mark.parametrize(
  'syntax', [dicom_files.BIG_ENDIAN, '1.2.840.10008.1.2.4.90']
)
def test_a_wrong_transfer_syntax_takes_no_memory(tmp_path, syntax):
  """GDCM alone takes 770 MB for such a slice of 1 KB, and then reads it."""
  scan_files.write_series(tmp_path / 'x', scan_files.make_hu((8, 7, 4)))
  path = tmp_path / 'x' / '1_001.dcm'
  path.write_bytes(dicom_files.claim(path.read_bytes(), syntax))
  code = (
    'import re, sys\n'
    'from transvw_tf2.scans import reader\n'
    'def kilobytes(key):\n'
    '  with open("/proc/self/status") as file:\n'
    '    return int(re.search(key + r":\\s+(\\d+)", file.read())[1])\n'
    'before = kilobytes("VmRSS")\n'
    'try:\n'
    '  reader.read_geometry(sys.argv[1])\n'
    'except reader.ScanError as error:\n'
    '  print(error)\n'
    'taken = kilobytes("VmHWM") - before\n'
    'assert taken < 100_000, taken\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'x'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'damaged: {path} claims the transfer syntax')


def test_gaps_that_differ_little_may_add_up(tmp_path):
  # By 8 % from the middle on: at most a tenth of a gap off in a short series.
  hu = scan_files.make_hu((32, 32, 160))
  folder = scan_files.write_series(tmp_path / 'a', hu, more_apart=0.2)
  error = _refused(folder)
  assert error.reason == 'uneven_slices'
  # 80 gaps of 2.5 mm and 79 of 2.7: the middle one is 80 * 0.1 mm * 79 / 159
  # away from where it would be.
  assert 'up to 7.9 mm away' in error.detail
  near = scan_files.write_series(tmp_path / 'b', hu, more_apart=0.02)
  assert reader.read_geometry(near).size == hu.shape


def test_a_slice_that_is_there_twice(tmp_path):
  hu = scan_files.make_hu(_SIZE)
  folder = scan_files.write_series(tmp_path, hu)
  slice_ = (tmp_path / '1_015.dcm').read_bytes()
  (tmp_path / 'copy.dcm').write_bytes(slice_)
  assert _refused(folder).reason == 'uneven_slices'


def test_slices_that_do_not_belong_together(tmp_path):
  hu = scan_files.make_hu(_SIZE)
  for name, other in {
    'size': {'hu': hu[:32, :32, :2]},
    'spacing': {'hu': hu[:, :, :2], 'spacing': (1.0, 1.0, 2.5)},
    'direction': {
      'hu': hu[:, :, :2],
      'direction': scan_files.rotation(0, 45),
    },
  }.items():
    folder = tmp_path / name
    scan_files.write_series(folder, hu)
    above = {'origin': (-10.0, -20.0, 50.0), **other}
    part = tmp_path / f'{name}_other'
    scan_files.write_series(part, above.pop('hu'), **above)
    for file in os.listdir(part):
      os.rename(part / file, folder / f'other_{file}')
    assert _refused(folder).reason == 'mixed_slices', name


def test_a_single_slice_is_no_volume(tmp_path):
  folder = scan_files.write_series(tmp_path, scan_files.make_hu((64, 64, 1)))
  assert _refused(folder).reason == 'not_3d'


def test_a_slice_of_an_absurd_size(tmp_path):
  folder = scan_files.write_series(tmp_path, scan_files.make_hu(_SIZE))
  for name in os.listdir(folder):
    contents = bytearray((tmp_path / name).read_bytes())
    for tag in (b'\x28\x00\x10\x00\x02', b'\x28\x00\x11\x00\x02'):
      value = contents.index(tag) + 8
      contents[value : value + 2] = b'\xff\xff'
    (tmp_path / name).write_bytes(contents)
  assert _refused(folder).reason == 'too_large'


def test_a_series_in_one_file_of_many_frames(tmp_path):
  stored = (scan_files.make_hu(_SIZE) + 1024).astype(np.uint16)
  scan_files.write(tmp_path / 'a.dcm', stored, spacing=(0.5, 0.75, 2.0))
  scan = reader.read_scan(os.fspath(tmp_path), check=False)
  np.testing.assert_array_equal(scan.hu, stored)
  assert scan.geometry.spacing == (0.5, 0.75, 2.0)
