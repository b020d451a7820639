"""Scans and masks: MetaImage, NIfTI, NRRD, NumPy and DICOM files."""

import functools
import json
import os
import struct

import numpy as np

from tests.fuzz import files as files_lib
from tests.fuzz import mutations
from tests.fuzz import targets
from tests.scans import dicom_files
from tests.scans import scan_files
from transvw_tf2.scans import dicom_elements
from transvw_tf2.scans import dicom_series
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import headers
from transvw_tf2.scans import image_file
from transvw_tf2.scans import masks
from transvw_tf2.scans import npy_file
from transvw_tf2.scans import reader
from transvw_tf2.scans import voxel_data

_SIZE = (8, 7, 6)
_CUBE = (4, 4, 4)
# Of the file outside; no file of a case has it everywhere.
SECRET = 12345

# Outside, relative and absolute, whatever the folder of the case is.
_ELSEWHERE = (
  *('../outside/x.raw', '/proc/self/cwd/../outside/x.raw', '..', '/', '.'),
  *('x%03d.raw 1 6 1', 'LIST', 'LIST 2', 'LOCAL', 'local', 'none.raw', 'x.mhd'),
  *('./x.raw', 'x.raw x.raw', 'a/../x.raw', '/dev/zero', '/dev/stdin', ''),
)
_FLAGS = ('True', 'False', 'T', '0', '1', 'x', '')
_META = {
  'ObjectType': ('Image', 'Scene', 'Tube', 'Mesh', 'x'),
  'ObjectSubType': ('HImage', 'x'),
  'NDims': ('0', '1', '2', '4', '5', '10', '11', '100', '-3', '3.5'),
  'DimSize': (
    *('8 7 600', '8 7', '8 7 6 1', '0 7 6', '-8 7 6', '8 7 5', '800 700 600'),
    *('4294967296 4294967296 6', '1 1 336', '9223372036854775807 2 1'),
  ),
  'ElementSpacing': ('0 0 0', '-1 1 1', '1 1', 'nan 1 1', '1e308 1e308 1e308'),
  'ElementSize': ('1 1 1', '0 0 0', '1'),
  'Offset': ('nan 0 0', '1e400 0 0', '0', '1e308 -1e308 0'),
  'Origin': ('0 0 0', '1 2'),
  'Position': ('0 0 0',),
  'CenterOfRotation': ('0 0 0', '0'),
  'TransformMatrix': (
    *('0 0 0 0 0 0 0 0 0', '1 0 0 1 0 0 1 0 0', '-1 0 0 0 -1 0 0 0 1'),
    *('0 1 0 1 0 0 0 0 1', '1 0 0 0', '1 0 0 0 1 0 0 0 nan', '1e300 ' * 9),
  ),
  'Rotation': ('1 0 0 0 1 0 0 0 1',),
  'ElementType': (
    *('MET_CHAR', 'MET_UCHAR', 'MET_USHORT', 'MET_INT', 'MET_LONG_LONG'),
    *('MET_FLOAT', 'MET_DOUBLE', 'MET_STRING', 'MET_NONE', 'MET_OTHER'),
    *('MET_FLOAT_MATRIX', 'MET_SHORT_ARRAY', 'MET_ASCII_CHAR', 'x', ''),
  ),
  'ElementNumberOfChannels': ('0', '1', '2', '3', '-1', '1000000000'),
  'HeaderSize': ('-1', '0', '8', '100', '-2', '99999999999', '9' * 30),
  'BinaryData': _FLAGS,
  'BinaryDataByteOrderMSB': _FLAGS,
  'ElementByteOrderMSB': _FLAGS,
  'CompressedData': _FLAGS,
  'CompressedDataSize': ('0', '-1', '1', '99999999999', '10', 'x', '1e99'),
  'ElementDataFile': _ELSEWHERE,
  'AnatomicalOrientation': ('RAI', 'x', 'RAIRAIRAI', ''),
  'Comment': ('x' * 5000,),
  'Name': ('x' * 600,),
  'TransformType': ('Rigid', 'x'),
  'Modality': ('MET_MOD_CT', 'x'),
  'Color': ('1 1 1 1', '1'),
  'ElementToIntensityFunctionSlope': ('0', 'nan', '2'),
  'ID': ('-1', '9' * 20),
}
_NRRD = {
  'type': (
    *('short', 'float', 'double', 'uchar', 'block', 'int16', 'ulonglong', 'x'),
    'long long int',
  ),
  'dimension': ('0', '1', '2', '3', '4', '5', '16', '17', '-1', '999'),
  'sizes': (
    *('8 7', '8 7 6 1', '0 7 6', '-8 7 6', '8 7 600', '1 1 336', '800 700 600'),
    '4294967296 4294967296 6',
  ),
  'spacings': ('1 1 1', 'nan nan nan', '0 0 0', '1'),
  'space': ('left-posterior-superior', 'RAS', 'scanner-xyz', 'x', '3D-right'),
  'space dimension': ('3', '2', '0', '9'),
  'space directions': (
    *('(1,0,0) (0,1,0) (0,0,1)', '(0,0,0) (0,0,0) (0,0,0)', 'none none none'),
    *('(1,0,0) (1,0,0) (1,0,0)', '(nan,0,0) (0,1,0) (0,0,1)', '(1,0) (0,1)'),
    '(1e300,0,0) (0,1,0) (0,0,1)',
  ),
  'space origin': ('(0,0,0)', '(nan,0,0)', '(0,0)', '(1e400,0,0)', 'x'),
  'kinds': ('domain domain domain', 'vector domain domain', 'x x x', 'list'),
  'centerings': ('cell cell cell', 'x'),
  'thicknesses': ('1 1 1', 'nan nan'),
  'axis mins': ('0 0 0', 'nan nan nan'),
  'labels': ('"x" "y" "z"', '"x', '"\\"'),
  'units': ('"mm" "mm" "mm"', 'mm'),
  'endian': ('little', 'big', 'x', ''),
  'encoding': ('raw', 'gzip', 'gz', 'ascii', 'text', 'txt', 'hex', 'bzip2'),
  'data file': _ELSEWHERE,
  'line skip': ('0', '1', '5', '-1', '99999999'),
  'byte skip': ('0', '1', '-1', '-2', '300', '99999999999'),
  'number': ('336', '1'),
  'content': ('x' * 70_000,),
  'block size': ('2', '0', '-1'),
  'measurement frame': ('(1,0,0) (0,1,0) (0,0,1)', '(nan,0,0)'),
  'old min': ('0', 'nan'),
}
_NIFTI = [
  *((0, '<i'), (39, '<b'), (68, '<h'), (70, '<h'), (72, '<h'), (108, '<f')),
  *((112, '<f'), (116, '<f'), (123, '<b'), (252, '<h'), (254, '<h')),
  *((344, '<i'), (348, '<b'), (352, '<i'), (356, '<i')),
  *((40 + 2 * at, '<h') for at in range(8)),
  *((76 + 4 * at, '<f') for at in range(8)),
  *((256 + 4 * at, '<f') for at in range(6)),
  *((280 + 4 * at, '<f') for at in range(12)),
]
# Group and element, and values that are worth a try.
_DICOM = {
  (0x0002, 0x0000): (b'\0\0\0\0', b'\xff\xff\xff\xff'),
  (0x0002, 0x0010): (
    *(b'1.2.840.10008.1.2', b'1.2.840.10008.1.2.2', b'1.2.840.10008.1.2.5'),
    *(b'1.2.840.10008.1.2.4.70', b'1.2.840.10008.1.2.4.90', b'1.2', b''),
    b'1.2.840.10008.1.2.1.99',
  ),
  (0x0008, 0x0016): (b'1.2.840.10008.5.1.4.1.1.4', b''),
  (0x0008, 0x0060): (b'MR', b''),
  (0x0020, 0x000E): (b'1.2.3', b'', b'1' * 200),
  (0x0020, 0x0013): (b'0', b'-1', b'x'),
  (0x0020, 0x0032): (b'0\\0', b'nan\\0\\0', b'0\\0\\0', b'1e400\\0\\0', b'x'),
  (0x0020, 0x0037): (
    *(b'1\\0\\0\\1\\0\\0', b'0\\0\\0\\0\\0\\0', b'nan\\0\\0\\0\\1\\0', b'1'),
    b'-1\\0\\0\\0\\-1\\0',
  ),
  (0x0028, 0x0002): (b'\x03\0', b'\0\0', b'\xff\xff'),
  (0x0028, 0x0004): (b'RGB', b'PALETTE COLOR', b'YBR_FULL', b'x'),
  (0x0028, 0x0008): (b'2', b'0', b'-1', b'99999999', b'4294967296'),
  (0x0028, 0x0010): (b'\0\0', b'\xff\xff', b'\x01\0', b'\x08\0\x08\0', b''),
  (0x0028, 0x0011): (b'\0\0', b'\xff\xff', b'\x01\0', b''),
  (0x0028, 0x0030): (b'0\\0', b'-1\\1', b'nan\\nan', b'1', b'1e300\\1', b''),
  (0x0028, 0x0100): (b'\x08\0', b'\x20\0', b'\x01\0', b'\x0c\0', b'\0\0'),
  (0x0028, 0x0101): (b'\x08\0', b'\xff\xff', b'\0\0'),
  (0x0028, 0x0102): (b'\x08\0', b'\xff\xff', b'\0\0'),
  (0x0028, 0x0103): (b'\0\0', b'\x02\0'),
  (0x0028, 0x1052): (b'nan', b'1e400', b'x', b''),
  (0x0028, 0x1053): (b'0', b'nan', b'1e300', b'', b'1\\2'),
  (0x7FE0, 0x0010): (b'', b'\0' * 111, b'\0' * 113, b'\xfe\xff\0\xe0' * 9),
}
_LONG_VRS = (b'OB', b'OW', b'OF', b'SQ', b'UT', b'UN', b'OD', b'UC', b'UR')


def _hu():
  return scan_files.make_hu(_SIZE)


def _read_scan(name):
  """Returns what reads a scan of a folder."""

  def read(folder):
    path = os.path.join(folder, name)
    scan = reader.read_scan(path, cube_shape=_CUBE)
    assert scan.hu.dtype == np.int16
    assert scan.hu.shape == scan.geometry.size
    assert scan.geometry == reader.read_geometry(path)
    assert not (scan.hu == SECRET).all(), 'a file outside was read'

  return read


def _seeds(write, *variants):
  """Returns the same as files_lib.seeds_of, which also hides a file outside."""
  seeds = files_lib.seeds_of(write, *variants)

  def seeds_and_secret(fixtures):
    outside = os.path.join(os.path.dirname(fixtures), 'outside')
    os.makedirs(outside, exist_ok=True)
    with open(os.path.join(outside, 'x.raw'), 'wb') as file:
      file.write(np.full(_SIZE, SECRET, '<i2').tobytes())
    return seeds(fixtures)

  return seeds_and_secret


_mutate = files_lib.mutate_with

_meta_field = functools.partial(mutations.header_field, mark=' = ', known=_META)
_nrrd_field = functools.partial(mutations.header_field, mark=': ', known=_NRRD)


def meta(rng, data):
  if rng.integers(6):
    return _meta_field(rng, data)
  return mutations.text_tokens(rng, data[:400]) + data[400:]


def nrrd(rng, data):
  if rng.integers(6):
    return _nrrd_field(rng, data)
  return mutations.text_tokens(rng, data[:300]) + data[300:]


def _write_mhd(folder, text=False, **fields):
  path = _as_path(folder)
  hu = _hu()
  scan_files.write_meta(path, hu, **fields)
  if text:
    (path / 'x.raw').write_text(' '.join(map(str, hu.ravel(order='F'))) + '\n')


def _as_path(folder):
  import pathlib

  return pathlib.Path(folder)


def _write_image(folder, name, dtype=np.int16, mask=False, **settings):
  volume = _hu().astype(dtype)
  if mask:
    volume = (_hu() > 0).astype(dtype)
  scan_files.write(os.path.join(folder, name), volume, **settings)


def _write_nifti(folder, name='x.nii', **settings):
  _write_image(folder, name, **settings)


def nifti(rng, data):
  return mutations.struct_field(rng, data, _NIFTI)


def nifti_gz(rng, data):
  import gzip
  import zlib

  if not rng.integers(4):
    return mutations.random_bytes(rng, data)
  try:
    inner = gzip.decompress(data)
  except (OSError, EOFError, zlib.error):
    return mutations.random_bytes(rng, data)
  damage = nifti if rng.integers(4) else mutations.random_bytes
  packed = gzip.compress(damage(rng, inner), 1, mtime=0)
  kind = int(rng.integers(12))
  if kind == 0:
    # A second member, of next to nothing or of much more.
    return packed + gzip.compress(b'\0' * _choose_length(rng), 9, mtime=0)
  if kind == 1:
    return gzip.compress(inner + b'\0' * _choose_length(rng), 9, mtime=0)
  return packed


def _choose_length(rng):
  return mutations.choose(rng, (0, 1, 1000, 10**6, 2 * 10**7))


def _write_nhdr(folder, encoding='raw', **fields):
  import gzip

  data = _hu().tobytes(order='F')
  if encoding == 'ascii':
    data = ' '.join(map(str, _hu().ravel(order='F'))).encode()
  if encoding == 'gzip':
    data = gzip.compress(data, mtime=0)
  header = {
    'type': 'short',
    'dimension': '3',
    'space': 'left-posterior-superior',
    'sizes': '8 7 6',
    'space directions': '(1,0,0) (0,1,0) (0,0,2)',
    'kinds': 'domain domain domain',
    'endian': 'little',
    'encoding': encoding,
    'space origin': '(0,0,0)',
    'data file': 'x.raw',
    **fields,
  }
  path = _as_path(folder)
  lines = ''.join(f'{key}: {value}\n' for key, value in header.items())
  (path / 'x.nhdr').write_text(f'NRRD0004\n{lines}\n')
  (path / 'x.raw').write_bytes(data)


def _write_npy(folder, dtype=np.int16, spacing=True):
  np.save(os.path.join(folder, 'x.npy'), _hu().astype(dtype))
  if spacing:
    with open(os.path.join(folder, 'x.json'), 'w') as file:
      json.dump({'spacing': [0.7, 0.8, 2.5]}, file)


def _write_dicom(folder, slices=4, **settings):
  scan_files.write_series(_as_path(folder), _hu()[:, :, :slices], **settings)


def _write_explicit_dicom(folder, syntax, compressor=None):
  if compressor:
    scan_files.write_series(
      _as_path(folder), _hu()[:, :, :4], compressor=compressor
    )
    return
  _write_dicom(folder)
  order = '>' if syntax == dicom_files.BIG_ENDIAN else '<'
  inner = dicom_files.element((0x0008, 0x0100), b'SH', b'CODE', order=order)
  sequence = dicom_files.element(
    *((0x0008, 0x2112), b'SQ'),
    dicom_files.item(inner, length=dicom_files.UNDEFINED, order=order)
    + dicom_files.sequence_end(order),
    length=dicom_files.UNDEFINED,
    order=order,
  )
  dicom_files.rewrite(
    folder, lambda data: dicom_files.encode(data, syntax, sequence)
  )


def _dicom_element(rng, data):
  """Changes the value, type or length of an element."""
  tag = mutations.choose(rng, sorted(_DICOM))
  at = data.find(struct.pack('<HH', *tag), 132)
  if at < 0 or len(data) < at + 12:
    return mutations.random_bytes(rng, data)
  is_long = data[at + 4 : at + 6] in _LONG_VRS
  start = at + (12 if is_long else 8)
  kind = '<I' if is_long else '<H'
  (length,) = struct.unpack_from(kind, data, start - struct.calcsize(kind))
  value = mutations.choose(rng, _DICOM[tag])
  if not rng.integers(3):
    value = mutations.encode(mutations.value_text(rng))[:60_000]
  value += b' ' * (len(value) % 2)
  told = len(value)
  vr = data[at + 4 : start - struct.calcsize(kind)]
  how = int(rng.integers(8))
  if how == 0:
    told = mutations.choose(rng, (0, 1, 2**16 - 1, told + 2, 2**32 - 1))
    told %= 2 ** (8 * struct.calcsize(kind))
  elif how == 1:
    vr = mutations.choose(rng, (b'SQ\0\0', b'UN\0\0', b'XX', b'\0\0', b'US'))
  elif how == 2:
    return data[:at] + data[start + length :]
  elif how == 3:
    value = value + data[at : start + length]
  return (data[: at + 4] + vr + struct.pack(kind, told) + value) + data[
    start + length :
  ]


def _mutate_dicom(rng, files):
  kind = int(rng.integers(12))
  if kind == 0:
    return mutations.drop_or_swap(rng, files)
  if kind == 1:
    return {**files, 'more.dcm': rng.bytes(400), 'x.txt': b'text'}
  if kind == 2:
    # In all slices alike.
    state = rng.bit_generator.state
    damaged = {}
    for name, data in files.items():
      rng.bit_generator.state = state
      damaged[name] = _dicom_element(rng, data)
    return damaged
  for _ in range(int(rng.integers(1, 3))):
    files = mutations.any_file(rng, files, {'': _dicom_element})
  return files


def _read_mask(folder):
  geometry = geometry_lib.Geometry(_SIZE)
  found = next(
    path
    for name in ('x', 'y')
    if (path := masks.find_mask(folder, name)) or name == 'y'
  )
  path = found or os.path.join(folder, 'none.mhd')
  mask = masks.read_mask(path, geometry)
  assert mask.shape == _SIZE and mask.dtype == bool
  masks.read_mask(path, geometry, masks.LUNGS)
  rng = np.random.default_rng(0)
  masks.draw_voxels(mask, 3, rng, path)


_IMAGE = (headers, voxel_data, image_file, reader)
_WRITERS = frozenset(('write_scan',))


def _image(name, file, seeds, how):
  return targets.Target(
    name=name,
    seeds=seeds,
    mutate=_mutate(how),
    read=_read_scan(file),
    errors=(reader.ScanError,),
    modules=_IMAGE,
    leaves_out=_WRITERS,
  )


TARGETS = (
  _image(
    'mhd',
    'x.mhd',
    _seeds(
      _write_mhd,
      {},
      {'TransformMatrix': '0 1 0 -1 0 0 0 0 1', 'Comment': 'a scan'},
      {'text': True, 'BinaryData': 'False'},
      {'HeaderSize': 0, 'ElementNumberOfChannels': 1, 'Modality': 'MET_MOD_CT'},
    ),
    {'.mhd': meta, '': mutations.random_bytes},
  ),
  _image(
    'mha',
    'x.mha',
    _seeds(
      _write_image,
      {'name': 'x.mha'},
      {'name': 'x.mha', 'dtype': np.float32},
      {'name': 'x.mha', 'spacing': (0.5, 0.5, 2.0), 'compress': 1},
    ),
    {'': meta},
  ),
  _image(
    'zraw',
    'x.mhd',
    _seeds(
      _write_image,
      {'name': 'x.mhd', 'compress': 1},
      {'name': 'x.mhd', 'compress': 1, 'dtype': np.float64},
    ),
    {'.mhd': meta, '': mutations.random_bytes},
  ),
  _image(
    'nii',
    'x.nii',
    _seeds(
      _write_nifti,
      {},
      {'dtype': np.float32},
      {'direction': scan_files.rotation(2, 20), 'dtype': np.int32},
    ),
    {'': nifti},
  ),
  _image(
    'nii.gz',
    'x.nii.gz',
    _seeds(
      _write_nifti,
      {'name': 'x.nii.gz'},
      {'name': 'x.nii.gz', 'dtype': np.float32},
    ),
    {'': nifti_gz},
  ),
  _image(
    'nrrd',
    'x.nrrd',
    _seeds(
      _write_image,
      {'name': 'x.nrrd'},
      {'name': 'x.nrrd', 'dtype': np.float32, 'compress': 1},
    ),
    {'': nrrd},
  ),
  _image(
    'nhdr',
    'x.nhdr',
    _seeds(
      _write_nhdr,
      {},
      {'encoding': 'gzip', 'byte skip': '-1'},
      {'encoding': 'gzip', 'line skip': '0'},
    ),
    {'.nhdr': nrrd, '': mutations.random_bytes},
  ),
  targets.Target(
    name='npy scan',
    seeds=_seeds(
      _write_npy, {}, {'dtype': np.float32}, {'dtype': '>i4', 'spacing': False}
    ),
    mutate=_mutate(
      {'.npy': mutations.npy_header, '.json': mutations.json_value}
    ),
    read=_read_scan('x.npy'),
    errors=(reader.ScanError,),
    modules=(npy_file, reader),
    leaves_out=_WRITERS,
  ),
  targets.Target(
    name='dicom',
    seeds=_seeds(_write_dicom, {}, {'slices': 6, 'intercept': 0}),
    mutate=_mutate_dicom,
    read=_read_scan(''),
    errors=(reader.ScanError,),
    modules=(dicom_series, dicom_elements, reader),
    leaves_out=_WRITERS,
  ),
  targets.Target(
    name='dicom with VRs',
    seeds=_seeds(
      _write_explicit_dicom,
      {'syntax': dicom_files.EXPLICIT},
      {'syntax': dicom_files.BIG_ENDIAN},
      {'syntax': '', 'compressor': 'JPEG'},
    ),
    mutate=_mutate_dicom,
    read=_read_scan(''),
    errors=(reader.ScanError,),
    modules=(dicom_series, dicom_elements, reader),
    leaves_out=_WRITERS,
  ),
  targets.Target(
    name='mask',
    seeds=_seeds(
      _write_image,
      {'name': 'x.mhd', 'mask': True, 'dtype': np.uint8, 'compress': 1},
      {'name': 'x.mha', 'mask': True, 'dtype': np.uint8},
      {'name': 'x.nii.gz', 'mask': True},
      {'name': 'y.nrrd', 'mask': True, 'dtype': np.float32},
    ),
    mutate=_mutate(
      {
        **{'.mhd': meta, '.mha': meta, '.nii.gz': nifti_gz, '.nrrd': nrrd},
        '': mutations.random_bytes,
      }
    ),
    read=_read_mask,
    errors=(reader.ScanError,),
    modules=(masks,),
  ),
)
