"""Broken headers: each gives one clear ScanError, and no other exception."""

import gzip
import itertools
import os
import struct

import numpy as np
import pytest

from tests.scans import scan_files
from transvw_tf2.scans import headers
from transvw_tf2.scans import reader
from transvw_tf2.scans import voxel_data


def _refused(path):
  with pytest.raises(reader.ScanError) as caught:
    reader.read_scan(os.fspath(path))
  assert '\n' not in str(caught.value)
  return caught.value


@pytest.mark.parametrize('suffix', reader.SCAN_SUFFIXES)
@pytest.mark.parametrize(
  'contents',
  [
    b'',
    b'\n',
    b'This is not a scan.\n',
    b'<!DOCTYPE html><html>404 = Not Found</html>\n',
    'Größe = 1\n'.encode('latin-1'),
    b'\x00' * 1000,
    b'\x1f\x8b\x08',
    b'=' * 100_000,
  ],
)
def test_a_file_that_is_no_scan(tmp_path, suffix, contents):
  path = tmp_path / f'a{suffix}'
  path.write_bytes(contents)
  error = _refused(path)
  assert error.reason == 'unreadable'
  assert str(path) in error.detail


@pytest.mark.parametrize(
  ('fields', 'reason'),
  [
    ({'DimSize': '-64 64 32'}, 'unreadable'),
    ({'DimSize': '0 64 32'}, 'unreadable'),
    ({'DimSize': '64 64'}, 'unreadable'),
    ({'DimSize': '64 64 32 1'}, 'unreadable'),
    ({'DimSize': '64 64 x'}, 'unreadable'),
    ({'DimSize': ''}, 'unreadable'),
    ({'DimSize': '100000 100000 100000'}, 'too_large'),
    ({'DimSize': '99999999999999999999 64 32'}, 'too_large'),
    ({'DimSize': '4294967296 4294967296 1'}, 'too_large'),
    ({'DimSize': '65 65 33'}, 'truncated'),
    ({'NDims': '2'}, 'unreadable'),
    ({'NDims': '4'}, 'unreadable'),
    # This ended the process, in MetaIO.
    ({'NDims': '1000000'}, 'unreadable'),
    ({'NDims': '3.0'}, 'unreadable'),
    ({'ElementSpacing': '1 0 1'}, 'bad_geometry'),
    ({'ElementSpacing': '1 -1 1'}, 'bad_geometry'),
    ({'ElementSpacing': '1 nan 1'}, 'bad_geometry'),
    ({'ElementSpacing': '1 1e999 1'}, 'bad_geometry'),
    ({'ElementSpacing': '1 1'}, 'unreadable'),
    ({'Offset': '0 nan 0'}, 'bad_geometry'),
    ({'TransformMatrix': '0 0 0 0 0 0 0 0 0'}, 'bad_geometry'),
    ({'TransformMatrix': '1 0 0 1 0 0 0 0 1'}, 'bad_geometry'),
    ({'TransformMatrix': 'nan 0 0 0 1 0 0 0 1'}, 'bad_geometry'),
    ({'TransformMatrix': '1 0 0 0 1 0 0 0'}, 'unreadable'),
    ({'TransformMatrix': ' '.join(['1'] * 300)}, 'unreadable'),
    ({'ElementType': 'MET_FOO'}, 'unreadable'),
    ({'ElementNumberOfChannels': 'abc'}, 'unreadable'),
    ({'ElementNumberOfChannels': '0'}, 'unreadable'),
    ({'ElementNumberOfChannels': '-1'}, 'unreadable'),
    ({'ElementNumberOfChannels': '3'}, 'not_3d'),
    ({'HeaderSize': 'abc'}, 'unreadable'),
    ({'HeaderSize': '1'}, 'truncated'),
    ({'CompressedData': 'True'}, 'damaged'),
    ({'ElementType': 'MET_DOUBLE'}, 'truncated'),
    ({'ElementDataFile': ''}, 'unreadable'),
    ({'ElementDataFile': 'LIST\nx.raw'}, 'unreadable'),
    ({'ElementDataFile': 'x%03d.raw 1 32 1'}, 'unreadable'),
    ({'ElementDataFile': '/etc/passwd'}, 'unreadable'),
    ({'ElementDataFile': '../x.raw'}, 'unreadable'),
    ({'ElementDataFile': 'nope.raw'}, 'missing_raw'),
    ({'ElementDataFile': '.'}, 'missing_raw'),
    ({'ElementDataFile': 'LOCAL'}, 'truncated'),
  ],
)
def test_meta_image_headers(tmp_path, fields, reason):
  path = scan_files.write_meta(
    tmp_path, scan_files.make_hu((64, 64, 32)), **fields
  )
  error = _refused(path)
  assert error.reason == reason, error
  if reason != 'damaged':  # which takes reading the voxels
    with pytest.raises(reader.ScanError, match=reason):
      reader.read_geometry(path)


@pytest.mark.parametrize('field', ['NDims', 'DimSize', 'ElementDataFile'])
def test_meta_image_headers_without_a_field(tmp_path, field):
  path = scan_files.write_meta(tmp_path, scan_files.make_hu(), drop=(field,))
  assert _refused(path).reason == 'unreadable'


def test_the_missing_raw_of_luna16_is_named(tmp_path):
  path = scan_files.write(tmp_path / '1.2.3.mhd', scan_files.make_hu())
  os.remove(tmp_path / '1.2.3.raw')
  error = _refused(path)
  assert error.reason == 'missing_raw'
  assert error.detail == f'{path} needs 1.2.3.raw beside it'


@pytest.mark.parametrize('size', [-1, 0, 512])
def test_meta_image_with_a_binary_header(tmp_path, size):
  hu = scan_files.make_hu()
  path = scan_files.write_meta(tmp_path, hu, HeaderSize=size)
  raw = tmp_path / 'x.raw'
  raw.write_bytes(b'\x07' * max(size, 0) + raw.read_bytes())
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


def test_meta_image_with_its_data_in_a_folder_below(tmp_path):
  hu = scan_files.make_hu()
  path = scan_files.write_meta(tmp_path, hu, ElementDataFile='raw/x.raw')
  (tmp_path / 'raw').mkdir()
  os.rename(tmp_path / 'x.raw', tmp_path / 'raw' / 'x.raw')
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


_NRRD = """NRRD0004
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: {sizes}
space directions: {directions}
endian: little
encoding: {encoding}
space origin: (0,0,0)
note:=encoding: foo
{data}
"""


def _write_nrrd(folder, hu, **fields):
  text = _NRRD.format(
    **{
      'sizes': ' '.join(map(str, hu.shape)),
      'directions': '(1,0,0) (0,1,0) (0,0,1)',
      'encoding': 'raw',
      'data': 'data file: x.raw',
      **fields,
    }
  )
  (folder / 'x.nhdr').write_text(text)
  (folder / 'x.raw').write_bytes(hu.tobytes(order='F'))
  return os.fspath(folder / 'x.nhdr')


@pytest.mark.parametrize('data', ['data file: x.raw', 'datafile: ./x.raw'])
def test_a_detached_nrrd_header(tmp_path, data):
  hu = scan_files.make_hu()
  path = _write_nrrd(tmp_path, hu, data=data)
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


@pytest.mark.parametrize(
  ('fields', 'reason'),
  [
    ({'data': 'data file: nope.raw'}, 'missing_raw'),
    ({'data': 'data file: /etc/passwd'}, 'unreadable'),
    ({'data': 'data file: ../x.raw'}, 'unreadable'),
    ({'data': 'data file: LIST\nx.raw'}, 'unreadable'),
    ({'data': 'data file: x%d.raw 1 32 1'}, 'unreadable'),
    ({'data': ''}, 'truncated'),
    ({'sizes': '64 64'}, 'unreadable'),
    ({'sizes': '-64 64 32'}, 'unreadable'),
    ({'sizes': '0 64 32'}, 'unreadable'),
    ({'sizes': '100000000 100000000 100000000'}, 'unreadable'),
    ({'sizes': '65536 65536 4'}, 'too_large'),
    ({'sizes': '1000 1000 1000'}, 'truncated'),
    ({'directions': '(0,0,0) (0,1,0) (0,0,1)'}, 'bad_geometry'),
    ({'directions': '(1,0,0) (1,0,0) (0,0,1)'}, 'bad_geometry'),
    ({'directions': '(nan,0,0) (0,1,0) (0,0,1)'}, 'unreadable'),
    ({'encoding': 'bzip2'}, 'unreadable'),
    ({'encoding': 'foo'}, 'unreadable'),
    ({'encoding': 'gzip'}, 'damaged'),
    ({'encoding': 'ascii'}, 'unreadable'),
    (
      {'encoding': 'gzip', 'data': 'line skip: 3\ndata file: x.raw'},
      'unreadable',
    ),
  ],
)
def test_nrrd_headers(tmp_path, fields, reason):
  path = _write_nrrd(tmp_path, scan_files.make_hu((64, 64, 32)), **fields)
  error = _refused(path)
  assert error.reason == reason, error


def _write_nifti(folder, hu, changes, name='a.nii'):
  path = scan_files.write(folder / 'whole.nii', hu)
  with open(path, 'rb') as file:
    contents = bytearray(file.read())
  for kind, offset, *values in changes:
    struct.pack_into(kind, contents, offset, *values)
  with (gzip.open if name.endswith('gz') else open)(
    folder / name, 'wb'
  ) as file:
    file.write(contents)
  return os.fspath(folder / name)


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    (('<8h', 40, 3, 32767, 32767, 32767, 1, 1, 1, 1), 'too_large'),
    (('<8h', 40, 3, 3000, 3000, 32, 1, 1, 1, 1), 'truncated'),
    (('<8h', 40, 3, -64, 64, 32, 1, 1, 1, 1), 'unreadable'),
    (('<8h', 40, 3, 0, 64, 32, 1, 1, 1, 1), 'unreadable'),
    (('<8h', 40, 4, 64, 64, 16, 2, 1, 1, 1), 'not_3d'),
    (('<2h', 70, 128, 24), 'unreadable'),  # RGB
    (('<2h', 70, 32, 64), 'unreadable'),  # complex
    (('<2h', 70, 9999, 16), 'unreadable'),
    (('<f', 108, 1e9), 'truncated'),
    (('<f', 108, -1e9), 'unreadable'),
    (('<f', 108, np.nan), 'unreadable'),
    (('<4f', 76, 1, 0, 1, 1), 'bad_geometry'),
    (('<4f', 76, 1, np.nan, 1, 1), 'bad_geometry'),
    (('<4f', 76, 1, -1, 1, 1), 'bad_geometry'),
    # SimpleITK never came back from these.
    (('<f', 296, -np.inf), 'bad_geometry'),
    (('<f', 296, np.nan), 'bad_geometry'),
    (('<f', 296, 3e38), 'bad_geometry'),
    (('<f', 256, np.inf), 'bad_geometry'),
    # Without scaling by the standard, shifted by SimpleITK.
    (('<2f', 112, 0.0, -24.0), 'bad_scaling'),
    (('<2f', 112, np.inf, 0.0), 'bad_scaling'),
    (('<2f', 112, 1.0, -np.inf), 'bad_scaling'),
  ],
)
def test_nifti_headers(tmp_path, name, change, reason):
  path = _write_nifti(
    tmp_path, scan_files.make_hu((64, 64, 32)), [change], name
  )
  error = _refused(path)
  assert error.reason == reason, error


def test_nifti_forms_that_are_not_used_may_hold_anything(tmp_path):
  hu = scan_files.make_hu()
  path = _write_nifti(
    tmp_path, hu, [('<h', 252, 0), ('<6f', 256, *[np.nan] * 6)]
  )
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


@pytest.mark.parametrize('scaling', [(0.0, 0.0), (np.nan, np.nan)])
def test_nifti_without_scaling(tmp_path, scaling):
  hu = scan_files.make_hu()
  path = _write_nifti(tmp_path, hu, [('<2f', 112, *scaling)])
  np.testing.assert_array_equal(reader.read_scan(path).hu, hu)


def test_nifti_of_the_other_byte_order(tmp_path):
  """Turns each field of the header and each voxel round, by hand."""
  hu = scan_files.make_hu()
  little = scan_files.write(tmp_path / 'little.nii', hu, spacing=(0.5, 0.75, 2))
  with open(little, 'rb') as file:
    contents = bytearray(file.read())
  for kind, offset, count in (
    *(('i', 0, 1), ('h', 40, 8), ('h', 70, 3), ('f', 76, 8), ('f', 108, 3)),
    *(('h', 252, 2), ('f', 256, 6), ('f', 280, 12)),
  ):
    values = struct.unpack_from(f'<{count}{kind}', contents, offset)
    struct.pack_into(f'>{count}{kind}', contents, offset, *values)
  contents[352:] = hu.astype('>i2').tobytes(order='F')
  (tmp_path / 'big.nii').write_bytes(contents)
  path = os.fspath(tmp_path / 'big.nii')
  assert headers.locate(path) == voxel_data.VoxelData(
    path, start=352, dtype=np.dtype('>i2')
  )
  scan = reader.read_scan(path)
  np.testing.assert_array_equal(scan.hu, hu)
  assert scan.geometry == reader.read_geometry(little)


@pytest.mark.parametrize(
  ('suffix', 'compress'),
  list(
    itertools.product(
      ['.mhd', '.mha', '.nii', '.nrrd', '.nhdr', '.npy'], [False, True]
    )
  ),
)
def test_random_damage_to_a_header_raises_nothing_else(
  tmp_path, suffix, compress
):
  hu = scan_files.make_hu((64, 64, 32))
  path = os.fspath(tmp_path / f'a{suffix}')
  if suffix == '.npy':
    np.save(path, hu)
  else:
    scan_files.write(path, hu, compress=compress)
  with open(path, 'rb') as file:
    whole = file.read()
  rng = np.random.default_rng(len(suffix) + compress)
  refused = 0
  for _ in range(25):
    damaged = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
      place = rng.integers(min(len(whole), 340))
      damaged[place] = rng.choice([0, 9, 10, 32, 45, 57, 101, 255])
    with open(path, 'wb') as file:
      file.write(damaged)
    try:
      assert reader.read_scan(path).hu.dtype == np.int16
    except reader.ScanError as error:
      assert error.reason and '\n' not in str(error)
      refused += 1
  assert refused > 0


_NRRD_FIELDS = {
  'type': 'short',
  'dimension': '3',
  'space': 'left-posterior-superior',
  'sizes': '64 64 32',
  'space directions': '(1,0,0) (0,1,0) (0,0,1)',
  'endian': 'little',
  'encoding': 'raw',
}


def _write_attached(path, more='', **changes):
  fields = _NRRD_FIELDS | changes
  lines = ''.join(f'{key}: {value}\n' for key, value in fields.items())
  hu = scan_files.make_hu((64, 64, 32))
  header = f'NRRD0004\n{lines}{more}\n'.encode()
  path.write_bytes(header + hu.tobytes(order='F'))
  return path


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('space', 'left-posterior-superior ' * 200),
    ('dimension', '3' + 'x' * 1000),
    ('encoding', 'raw' + '\r' * 4000 + 'x'),
    ('kinds', 'domain ' * 600),
    ('what is this', 'x' * 1000),
  ],
)
def test_nrrd_fields_that_simpleitk_does_not_survive(tmp_path, field, value):
  error = _refused(_write_attached(tmp_path / 'a.nrrd', **{field: value}))
  assert error.reason == 'unreadable'
  assert 'has a line of' in str(error) or 'encoding is raw' in str(error)


def test_an_nrrd_line_without_an_end(tmp_path):
  more = 'content: ' + 'x' * 70_000 + f'\nunits: {"x" * 4000}\n'
  error = _refused(_write_attached(tmp_path / 'a.nrrd', more))
  assert 'does not end in 65536 bytes' in str(error)


def test_long_nrrd_comments_are_read(tmp_path):
  more = f'# {"x" * 5000}\ncontent: {"y" * 5000}\nmine:={"z" * 5000}\n'
  path = _write_attached(tmp_path / 'a.nrrd', more)
  np.testing.assert_array_equal(
    reader.read_scan(os.fspath(path)).hu, scan_files.make_hu((64, 64, 32))
  )


def test_a_name_that_is_not_utf8_fits_into_the_message(tmp_path):
  path = scan_files.write_meta(tmp_path, scan_files.make_hu())
  data = (tmp_path / 'x.mhd').read_bytes().replace(b'x.raw', b'\xff.raw')
  (tmp_path / 'x.mhd').write_bytes(data)
  error = _refused(path)
  assert error.reason == 'missing_raw'
  # It goes to rejected.csv.
  assert b'udcff.raw' in str(error).encode()


@pytest.mark.parametrize('compressed', ['True', 'False'])
def test_voxels_that_begin_beyond_any_file(tmp_path, compressed):
  path = scan_files.write_meta(
    tmp_path,
    scan_files.make_hu(),
    CompressedData=compressed,
    HeaderSize='9' * 30,
  )
  assert _refused(path).reason == 'truncated'


@pytest.mark.parametrize('encoding', ['text', 'ascii', 'txt', 'hex', 'bzip2'])
def test_nrrd_voxels_that_simpleitk_does_not_survive(tmp_path, encoding):
  # As text, these bytes are one long word.
  path = _write_attached(tmp_path / 'a.nrrd', encoding=encoding)
  assert 'encoding is raw or gzip' in str(_refused(path))
