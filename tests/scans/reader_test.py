"""Scans of every format: values, axes, places, and what is refused."""

import json
import os
import pickle
import threading

import numpy as np
import pytest
import SimpleITK as sitk

from tests import real_ct
from tests.scans import scan_files
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import reader

_ITK_SUFFIXES = ('.mhd', '.mha', '.nii', '.nii.gz', '.nrrd', '.nhdr')
_OBLIQUE = scan_files.rotation(0, 15)


def _refused(path, **kwargs):
  """Returns the ScanError of reading a path."""
  with pytest.raises(reader.ScanError) as caught:
    reader.read_scan(os.fspath(path), **kwargs)
  text = str(caught.value)
  assert text == f'{caught.value.reason}: {caught.value.detail}'
  assert '\n' not in text
  assert os.path.basename(path).replace('\0', '\\x00') in text
  return caught.value


def test_every_suffix_is_listed():
  assert sorted(reader.SCAN_SUFFIXES) == sorted((*_ITK_SUFFIXES, '.npy'))


@pytest.mark.parametrize('compress', [False, True])
@pytest.mark.parametrize('suffix', _ITK_SUFFIXES)
def test_reads_values_axes_and_geometry(tmp_path, suffix, compress):
  hu = scan_files.make_hu()
  path = scan_files.write(
    tmp_path / f'a{suffix}',
    hu,
    spacing=(0.5, 0.75, 2.0),
    origin=(-100.0, 50.0, 25.0),
    direction=_OBLIQUE,
    compress=compress,
  )
  scan = reader.read_scan(path)
  assert scan.hu.dtype == np.int16
  assert scan.hu.flags.c_contiguous
  assert scan.hu.flags.owndata
  np.testing.assert_array_equal(scan.hu, hu)
  assert scan.geometry.size == hu.shape
  for got, want in (
    (scan.geometry.spacing, (0.5, 0.75, 2.0)),
    (scan.geometry.origin, (-100.0, 50.0, 25.0)),
    (scan.geometry.direction, _OBLIQUE.ravel()),
  ):
    # NIfTI keeps float32.
    np.testing.assert_allclose(got, want, atol=1e-5)
  assert reader.read_geometry(path) == scan.geometry


@pytest.mark.parametrize('suffix', ['.mhd', '.nii.gz', '.nrrd'])
@pytest.mark.parametrize(
  ('axes', 'signs'),
  [
    ((0, 1, 2), (-1, -1, 1)),  # the flipped headers of LUNA16
    ((0, 1, 2), (1, 1, -1)),
    ((1, 2, 0), (1, -1, 1)),
    ((2, 1, 0), (-1, 1, -1)),
  ],
)
def test_turns_to_lps_with_every_voxel_in_its_place(
  tmp_path, suffix, axes, signs
):
  size = (70, 66, 68)  # holds a cube whichever way it is turned
  hu = scan_files.make_hu(size)
  path = scan_files.write(
    tmp_path / f'a{suffix}',
    hu,
    spacing=(0.5, 0.75, 2.0),
    origin=(-100.0, 50.0, 25.0),
    direction=_OBLIQUE @ (np.eye(3)[:, axes] * signs),
  )
  scan = reader.read_scan(path)
  assert scan.geometry == reader.read_geometry(path)
  assert scan.hu.shape == scan.geometry.size
  # x to the left, y to the back, z up.
  assert np.diag(np.reshape(scan.geometry.direction, (3, 3))).min() > 0.9
  image = sitk.ReadImage(path)
  for index in np.random.default_rng(1).integers(0, size, (200, 3)):
    voxel = [int(one) for one in index]
    point = image.TransformIndexToPhysicalPoint(voxel)
    there = scan.geometry.world_to_voxel(point)
    np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
    assert scan.hu[tuple(np.rint(there).astype(int))] == image[voxel]


@pytest.mark.parametrize(
  'dtype',
  [
    *('int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64'),
    *('uint64', 'float32', 'float64'),
  ],
)
@pytest.mark.parametrize('suffix', ['.mha', '.npy'])
def test_takes_every_number_type_and_clips_to_int16(tmp_path, dtype, suffix):
  limits = np.iinfo(dtype) if dtype[0] != 'f' else np.finfo(np.float32)
  values = np.array([limits.min, 0, 3, 100, limits.max], dtype)
  array = np.resize(values, (4, 5, 6))
  path = os.fspath(tmp_path / f'a{suffix}')
  if suffix == '.npy':
    np.save(path, array)
  else:
    scan_files.write(path, array)
  got = reader.read_scan(path, check=False).hu
  wanted = np.clip(array.astype(np.float64), -32768, 32767)
  np.testing.assert_array_equal(got, wanted)


def test_rounds_floats_to_the_nearest_hu(tmp_path):
  array = np.array([-1000.4, -0.6, 0.4, 39.7]).repeat(16).reshape(4, 4, 4)
  path = scan_files.write(tmp_path / 'a.nrrd', array.astype(np.float32))
  got = reader.read_scan(path, check=False).hu
  np.testing.assert_array_equal(got[:, 0, 0], [-1000, -1, 0, 40])


def test_clips_half_floats_to_int16(tmp_path):
  """Which hold 32768, but not 32767."""
  values = np.array([-1000, 40, 32768, 60000], np.float16)
  np.save(tmp_path / 'a.npy', np.resize(values, (4, 4, 4)))
  got = reader.read_scan(os.fspath(tmp_path / 'a.npy'), check=False).hu
  np.testing.assert_array_equal(got[0, 0], [-1000, 40, 32767, 32767])


def test_keeps_padding_below_air(tmp_path):
  hu = scan_files.make_hu()
  hu[:5] = -3024
  assert reader.read_scan(
    scan_files.write(tmp_path / 'a.mha', hu)
  ).hu.min() == (-3024)


def test_reads_big_endian(tmp_path):
  hu = scan_files.make_hu()
  path = scan_files.write_meta(
    tmp_path, hu.astype('>i2'), BinaryDataByteOrderMSB='True'
  )
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)
  np.save(tmp_path / 'a.npy', hu.astype('>i2'))
  np.testing.assert_array_equal(
    reader.read_scan(os.fspath(tmp_path / 'a.npy')).hu, hu
  )


def test_reads_values_written_as_text(tmp_path):
  hu = np.arange(-500, -500 + 4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
  path = scan_files.write_meta(tmp_path, hu, BinaryData='False')
  text = ' '.join(map(str, hu.ravel(order='F')))
  (tmp_path / 'x.raw').write_text(text + ' ')
  np.testing.assert_array_equal(reader.read_scan(path, check=False).hu, hu)


def test_nifti_scaling_is_applied(tmp_path):
  hu = scan_files.make_hu()
  path = scan_files.write(tmp_path / 'a.nii', (hu + 1024) // 2)
  with open(path, 'r+b') as file:
    file.seek(112)
    file.write(np.array([2.0, -1024.0], '<f4').tobytes())
  np.testing.assert_array_equal(
    reader.read_scan(path).hu, (hu + 1024) // 2 * 2 - 1024
  )


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
  hu = scan_files.make_hu()
  image = sitk.JoinSeries([sitk.GetImageFromArray(hu.T)])
  image.SetSpacing((0.5, 0.75, 2.0, 1.0))
  path = os.fspath(tmp_path / 'a.nii.gz')
  sitk.WriteImage(image, path)
  scan = reader.read_scan(path)
  np.testing.assert_array_equal(scan.hu, hu)
  assert scan.geometry.spacing == (0.5, 0.75, 2.0)


def test_reads_a_path_that_is_not_ascii(tmp_path):
  folder = tmp_path / 'Lungë 肺'
  folder.mkdir()
  hu = scan_files.make_hu()
  for suffix in ('.mhd', '.nii.gz', '.nrrd'):
    path = scan_files.write(folder / f'ß{suffix}', hu)
    np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


@pytest.mark.parametrize(
  ('name', 'reason'), [('a.mhd', 'missing_file'), ('a\0.mhd', 'missing_file')]
)
def test_a_file_that_is_not_there(tmp_path, name, reason):
  assert _refused(tmp_path / name).reason == reason
  with pytest.raises(reader.ScanError, match=reason):
    reader.read_geometry(os.fspath(tmp_path / name))


def test_a_suffix_that_is_not_known(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'x')
  error = _refused(tmp_path / 'a.png')
  assert error.reason == 'unknown_format'
  assert '.nii.gz' in error.detail


def test_links_pipes_and_folders_in_place_of_files(tmp_path):
  os.symlink(tmp_path / 'loop.mhd', tmp_path / 'loop.mhd')
  assert _refused(tmp_path / 'loop.mhd').reason == 'missing_file'
  for suffix in reader.SCAN_SUFFIXES:
    os.mkfifo(tmp_path / f'pipe{suffix}')
    assert _refused(tmp_path / f'pipe{suffix}').reason == 'unreadable'
    (tmp_path / f'folder{suffix}').mkdir()
    error = _refused(tmp_path / f'folder{suffix}')
    assert error.reason == 'not_one_series'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every file')
def test_a_file_that_may_not_be_read(tmp_path):
  path = scan_files.write(tmp_path / 'a.mha', scan_files.make_hu())
  os.chmod(path, 0)
  assert _refused(path).reason == 'unreadable'


def test_an_error_of_the_file_system_becomes_a_scan_error(
  tmp_path, monkeypatch
):
  path = scan_files.write(tmp_path / 'a.mha', scan_files.make_hu())

  def fail(path):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr(os.path, 'getsize', fail)
  error = _refused(path)
  assert error.reason == 'unreadable'
  assert 'Permission denied' in error.detail
  with pytest.raises(reader.ScanError, match='Permission denied'):
    reader.read_geometry(path)


@pytest.mark.parametrize('shape', [(64, 64), (64, 64, 1), (64, 64, 32, 2)])
@pytest.mark.parametrize('suffix', ['.mha', '.nii', '.nrrd', '.npy'])
def test_only_volumes_are_taken(tmp_path, shape, suffix):
  path = os.fspath(tmp_path / f'a{suffix}')
  array = np.zeros(shape, np.int16)
  if suffix == '.npy':
    np.save(path, array)
  else:
    scan_files.write(path, array)
  assert _refused(path, check=False).reason == 'not_3d'


@pytest.mark.parametrize('suffix', ['.mha', '.nii', '.nrrd'])
def test_one_number_per_voxel_is_wanted(tmp_path, suffix):
  rgb = sitk.GetImageFromArray(np.zeros((32, 64, 64, 3), np.uint8), True)
  path = os.fspath(tmp_path / f'a{suffix}')
  sitk.WriteImage(rgb, path)
  assert _refused(path).reason in ('not_3d', 'unreadable')


@pytest.mark.parametrize('suffix', ['.mha', '.nii.gz', '.nrrd', '.npy'])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(tmp_path, suffix, bad):
  array = np.zeros((64, 64, 32), np.float32)
  array[5, 6, 7] = bad
  path = os.fspath(tmp_path / f'a{suffix}')
  if suffix == '.npy':
    np.save(path, array)
  else:
    scan_files.write(path, array)
  assert _refused(path).reason == 'not_finite'


def test_a_scan_must_hold_a_cube(tmp_path):
  for size in ((63, 64, 32), (64, 63, 32), (64, 64, 31)):
    path = scan_files.write(tmp_path / 'a.mha', scan_files.make_hu(size))
    error = _refused(path)
    assert error.reason == 'too_small'
    assert '64 x 64 x 32' in error.detail
    assert reader.read_scan(path, check=False).hu.shape == size
  path = scan_files.write(tmp_path / 'a.mha', scan_files.make_hu((64, 64, 32)))
  assert reader.read_scan(path).hu.shape == (64, 64, 32)


@pytest.mark.parametrize(
  ('low', 'high', 'taken'),
  [
    (-1000, 400, True),
    (-2000, 3071, True),
    (-200, -100, True),
    (-199, 400, False),
    (-1000, -101, False),
    (0, 1, False),  # a mask
    (0, 255, False),  # a picture
    (0, 2800, False),  # an MRI, or a CT whose intercept was forgotten
    (-1024, -1024, False),
  ],
)
def test_values_must_be_those_of_ct(tmp_path, low, high, taken):
  hu = np.full((64, 64, 32), low, np.int16)
  hu[20:40] = high
  path = scan_files.write(tmp_path / 'a.mha', hu)
  if taken:
    np.testing.assert_array_equal(reader.read_scan(path).hu, hu)
  else:
    error = _refused(path)
    assert error.reason == 'not_ct_range'
    assert f'{low} to {high}' in error.detail
    assert reader.read_scan(path, check=False).hu.max() == high


def test_an_error_goes_through_a_pickle_whole():
  error = reader.ScanError('missing_raw', 'a.mhd needs a.raw beside it')
  again = pickle.loads(pickle.dumps(error))
  assert isinstance(again, reader.ScanError)
  assert (again.reason, again.detail) == (error.reason, error.detail)
  assert str(again) == 'missing_raw: a.mhd needs a.raw beside it'


def test_the_same_broken_file_gives_the_same_text(tmp_path):
  """The text goes into a file that must not differ between runs."""
  path = tmp_path / 'a.nii'
  path.write_bytes(b'\x00' * 400)
  assert str(_refused(path)) == str(_refused(path))
  path = scan_files.write_meta(
    tmp_path, scan_files.make_hu(), ElementType='MET_FOO'
  )
  assert str(_refused(path)) == str(_refused(path))
  assert '0x' not in str(_refused(path))


@pytest.mark.parametrize('suffix', _ITK_SUFFIXES)
def test_write_scan_is_read_back(tmp_path, suffix):
  hu = scan_files.make_hu()
  geometry = geometry_lib.Geometry(
    size=hu.shape,
    spacing=(0.5, 0.75, 2.0),
    origin=(-100.0, 50.0, 25.0),
    direction=tuple(_OBLIQUE.ravel()),
  )
  path = os.fspath(tmp_path / f'a{suffix}')
  reader.write_scan(path, hu, geometry)
  scan = reader.read_scan(path)
  np.testing.assert_array_equal(scan.hu, hu)
  np.testing.assert_allclose(
    scan.geometry.voxel_to_world(hu.shape),
    geometry.voxel_to_world(hu.shape),
    atol=1e-3,
  )
  assert not [name for name in os.listdir(tmp_path) if name[0] == '.']


def test_write_scan_compresses_masks(tmp_path):
  mask = np.zeros(scan_files.SIZE, np.uint8)
  mask[10:20] = 3
  path = os.fspath(tmp_path / 'a.mhd')
  reader.write_scan(path, mask, geometry_lib.Geometry(mask.shape))
  assert sorted(os.listdir(tmp_path)) == ['a.mhd', 'a.zraw']
  assert os.path.getsize(tmp_path / 'a.zraw') < mask.size // 50
  np.testing.assert_array_equal(reader.read_scan(path, check=False).hu, mask)


def test_write_scan_leaves_nothing_where_it_fails(tmp_path, monkeypatch):
  hu = scan_files.make_hu()
  path = os.fspath(tmp_path / 'a.mhd')

  def fail(source, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='No space left'):
    reader.write_scan(path, hu, geometry_lib.Geometry(hu.shape))
  assert os.listdir(tmp_path) == []


def test_threads_write_into_one_folder(tmp_path):
  scans = [scan_files.make_hu(seed=seed) for seed in range(4)]

  def write(index):
    reader.write_scan(
      os.fspath(tmp_path / f'{index}.mhd'),
      scans[index],
      geometry_lib.Geometry(scans[index].shape),
    )

  threads = [
    threading.Thread(target=write, args=(index,)) for index in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for index, hu in enumerate(scans):
    path = os.fspath(tmp_path / f'{index}.mhd')
    np.testing.assert_array_equal(reader.read_scan(path).hu, hu)
  assert len(os.listdir(tmp_path)) == 8


def test_npy_takes_its_spacing_from_a_json_file(tmp_path, caplog):
  hu = scan_files.make_hu()
  path = os.fspath(tmp_path / 'a.npy')
  np.save(path, hu)
  assert reader.read_scan(path).geometry == geometry_lib.Geometry(hu.shape)
  (tmp_path / 'a.json').write_text(json.dumps({'spacing': [0.5, 0.75, 2]}))
  scan = reader.read_scan(path)
  assert scan.geometry.spacing == (0.5, 0.75, 2.0)
  np.testing.assert_array_equal(scan.hu, hu)
  # The array outlives the file it was mapped from.
  os.remove(path)
  assert scan.hu.max() == 1200


def test_reads_a_real_ct():
  path = real_ct.path()
  scan = reader.read_scan(path)
  assert scan.geometry.size == scan.hu.shape == (512, 512, 48)
  np.testing.assert_allclose(
    scan.geometry.spacing, (0.5703125, 0.5703125, 5.0), atol=1e-6
  )
  np.testing.assert_allclose(
    np.reshape(scan.geometry.direction, (3, 3)), np.eye(3), atol=1e-6
  )
  np.testing.assert_array_equal(
    scan.hu, sitk.GetArrayFromImage(sitk.ReadImage(path)).transpose(2, 1, 0)
  )
  # Air around the patient, soft tissue, and a good share of lung.
  assert np.median(scan.hu[:10, :10]) < -900
  assert np.mean((scan.hu > -50) & (scan.hu < 150)) > 0.1
  assert np.mean((scan.hu > -950) & (scan.hu < -700)) > 0.05


def test_a_real_mask_is_read_only_without_the_check():
  path = real_ct.path('lung1_label.nrrd')
  with pytest.raises(reader.ScanError, match='not_ct_range'):
    reader.read_scan(path)
  mask = reader.read_scan(path, check=False)
  assert mask.geometry == reader.read_geometry(real_ct.path())
  assert set(np.unique(mask.hu)) == {0, 1}
