"""Reads from the header of an image file where its voxels are stored.

SimpleITK reads headers too; it does not say where the voxels are, and its
MetaImage reader does not survive every broken header.
"""

import gzip
import math
import os
import struct
import zlib

import numpy as np

from transvw_tf2.scans import errors
from transvw_tf2.scans import voxel_data

# The text headers of MetaImage and NRRD are a few hundred bytes long.
_HEADER_BYTES = 1 << 16
_LINE_BYTES = 1000
# Most that a file system takes.
_NAME_LENGTH = 255

_META_SUFFIXES = ('.mhd', '.mha')
_NRRD_SUFFIXES = ('.nrrd', '.nhdr')
# Three directions of three numbers in all their digits are less.
_NRRD_LINE_BYTES = 400

# Fields of MetaImage with a number per axis, and per pair of axes.
_META_VECTORS = frozenset(
  ('DimSize', 'ElementSpacing', 'ElementSize')
  + ('Offset', 'Position', 'Origin', 'CenterOfRotation')
)
_META_MATRICES = frozenset(('TransformMatrix', 'Rotation', 'Orientation'))

# NumPy's name of the type codes of NIfTI with one number per voxel.
_NIFTI_TYPES = {
  **{2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8'},
  **{256: 'i1', 512: 'u2', 768: 'u4', 1024: 'i8', 1280: 'u8'},
}
# Where the fields of NIfTI-1 and NIfTI-2 lie, by the length of the header.
_NIFTI_LAYOUTS = {
  348: {
    'datatype': ('h', 70),
    'pixdim': ('8f', 76),
    'vox_offset': ('f', 108),
    'scaling': ('2f', 112),
    'codes': ('2h', 252),
    'quatern': ('6f', 256),
    'srow': ('12f', 280),
  },
  540: {
    'datatype': ('h', 12),
    'pixdim': ('8d', 104),
    'vox_offset': ('q', 168),
    'scaling': ('2d', 176),
    'codes': ('2i', 344),
    'quatern': ('6d', 352),
    'srow': ('12d', 400),
  },
}
# A kilometre: nothing in a scanner is further.
_MOST_MM = 1e6


def locate(path: str) -> voxel_data.VoxelData:
  """Finds the voxels of a MetaImage, NRRD or NIfTI file.

  Raises:
    ScanError: the header is broken, or names a data file that is missing or
      does not lie beside it.
    OSError: the file cannot be opened.
  """
  if path.endswith(_META_SUFFIXES):
    return _locate_meta_image(path)
  if path.endswith(_NRRD_SUFFIXES):
    return _locate_nrrd(path)
  return _locate_nifti(path)


def data_file_name(path: str) -> str | None:
  """Returns the name of the data file that a header names.

  None where the voxels are in the file itself, the header is broken, or no one
  file beside it is named.

  Raises:
    OSError: the file cannot be opened.
  """
  try:
    if path.endswith(_META_SUFFIXES):
      name = _read_meta_fields(path)[0].get('ElementDataFile', '')
      name = '' if name.lower() == 'local' else name
    elif path.endswith(_NRRD_SUFFIXES):
      name = _read_nrrd_fields(path)[0].get('datafile', '')
    else:
      return None
  except errors.ScanError:
    return None
  if not 0 < len(name) <= _NAME_LENGTH or '\0' in name:
    return None
  return name if _is_one_file_beside(name) else None


def _locate_meta_image(path: str) -> voxel_data.VoxelData:
  fields, end = _read_meta_fields(path)
  name = fields.get('ElementDataFile')
  if not name:
    raise errors.ScanError('unreadable', f'{path} is not a MetaImage header')
  header = _check_meta_numbers(path, fields)
  encoding = voxel_data.RAW
  if fields.get('CompressedData', '')[:1] in ('T', 't', '1'):
    encoding = voxel_data.DEFLATED
  elif fields.get('BinaryData', '')[:1] in ('F', 'f', '0'):
    encoding = voxel_data.TEXT
  if name.lower() == 'local':
    return voxel_data.VoxelData(path, end, encoding)
  return voxel_data.VoxelData(
    _file_beside(path, name), max(0, header), encoding
  )


def _check_meta_numbers(path: str, fields: dict[str, str]) -> int:
  """Returns HeaderSize of a MetaImage header whose numbers are good.

  MetaIO takes 0 for what is not a number, and a large NDims makes it write past
  the end of its arrays, which ends the process.

  Raises:
    ScanError: a number is none, infinite, missing or too many.
  """
  try:
    axes = int(fields['NDims'])
    size = [int(side) for side in fields['DimSize'].split()]
    header = int(fields.get('HeaderSize', 0))
    int(fields.get('ElementNumberOfChannels', 1))
    numbers = {
      key: [float(one) for one in value.split()]
      for key, value in fields.items()
      if key in _META_VECTORS or key in _META_MATRICES
    }
  except (KeyError, ValueError) as error:
    raise errors.ScanError(
      'unreadable', f'{path} is not a MetaImage header: {error!r}'
    ) from error
  counts = {
    key: axes * axes if key in _META_MATRICES else axes for key in numbers
  }
  if not 1 <= axes <= 4 or any(
    len(numbers[key]) != count for key, count in counts.items()
  ):
    raise errors.ScanError(
      'unreadable', f'{path} has NDims = {axes}, which its other fields deny'
    )
  if not all(math.isfinite(one) for row in numbers.values() for one in row):
    raise errors.ScanError(
      'bad_geometry', f'{path} has NaN or infinity among its numbers'
    )
  voxel_data.check_size(path, size)
  return header


def _locate_nrrd(path: str) -> voxel_data.VoxelData:
  fields, end = _read_nrrd_fields(path)
  # Of text, SimpleITK does not survive all that is none.
  encoding = {
    'raw': voxel_data.RAW,
    'gz': voxel_data.DEFLATED,
    'gzip': voxel_data.DEFLATED,
  }.get(fields.get('encoding', '').lower())
  if encoding is None:
    raise errors.ScanError(
      'unreadable',
      f'{path} is not an NRRD file whose encoding is raw or gzip',
    )
  name = fields.get('datafile')
  if name is None:
    return voxel_data.VoxelData(path, end, encoding)
  if encoding == voxel_data.DEFLATED and fields.get('lineskip', '0') != '0':
    raise errors.ScanError(
      'unreadable', f'{path} has compressed voxels behind lines to be skipped'
    )
  return voxel_data.VoxelData(_file_beside(path, name), 0, encoding)


def _locate_nifti(path: str) -> voxel_data.VoxelData:
  deflated = path.endswith('.gz')
  try:
    with (gzip.open if deflated else open)(path, 'rb') as file:
      fields = _nifti_fields(file.read(540))
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise errors.unreadable(path, error) from error
  start = fields.get('vox_offset', (math.nan,))[0]
  kind = _NIFTI_TYPES.get(fields.get('datatype', (0,))[0])
  if kind is None or not 0 <= start < 2**40:
    raise errors.ScanError(
      'unreadable', f'{path} is not a NIfTI file with one number per voxel'
    )
  _check_nifti_numbers(path, fields)
  _check_nifti_scaling(path, *fields['scaling'])
  return voxel_data.VoxelData(
    path,
    start=0 if deflated else int(start),
    encoding=voxel_data.DEFLATED if deflated else voxel_data.RAW,
    skipped=int(start) if deflated else 0,
    dtype=np.dtype(fields['order'] + kind),
  )


def _nifti_fields(header: bytes) -> dict[str, tuple]:
  """Returns the fields of `_NIFTI_LAYOUTS`, none where it is not NIfTI."""
  for length, layout in _NIFTI_LAYOUTS.items():
    for order in '<>':
      if len(header) >= length and header[:4] == struct.pack(
        f'{order}i', length
      ):
        return {'order': order} | {
          key: struct.unpack_from(order + kind, header, offset)
          for key, (kind, offset) in layout.items()
        }
  return {}


def _check_nifti_numbers(path: str, fields: dict[str, tuple]) -> None:
  """Checks what places the voxels.

  SimpleITK takes 1 for a spacing of 0 or NaN, and does not come back from a
  matrix with an infinite number.
  """
  quatern_code, srow_code = fields['codes']
  numbers = [
    *fields['pixdim'][:4],
    *(fields['quatern'] if quatern_code > 0 else ()),
    *(fields['srow'] if srow_code > 0 else ()),
  ]
  if not all(abs(one) < _MOST_MM for one in numbers) or not all(
    fields['pixdim'][1:4]
  ):
    raise errors.ScanError(
      'bad_geometry',
      f'{path} has pixdim {fields["pixdim"][1:4]}, quaternion'
      f' {fields["quatern"]} and matrix {fields["srow"]}, which do not place a'
      ' volume',
    )


def _check_nifti_scaling(path: str, slope: float, intercept: float) -> None:
  """Checks what makes HU of the voxels.

  By the standard a slope of 0 means that there is no scaling; SimpleITK adds
  the intercept all the same.
  """
  if (slope == 0 and intercept) or math.isinf(slope) or math.isinf(intercept):
    raise errors.ScanError(
      'bad_scaling',
      f'{path} has scl_slope {slope:g} and scl_inter {intercept:g}, of which'
      ' readers make different numbers: write them with the voxels scaled',
    )


def _read_meta_fields(path: str) -> tuple[dict[str, str], int]:
  """Returns the fields of a MetaImage header, and where it ends."""
  with open(path, 'rb') as file:
    lines = file.read(_HEADER_BYTES).splitlines(keepends=True)
  fields, end = {}, 0
  for line in lines:
    end += len(line)
    text = line.decode('utf-8', 'surrogateescape')
    key, separator, value = text.partition('=')
    if not separator or not key.isascii() or len(line) > _LINE_BYTES:
      break
    fields[key.strip()] = value.strip()
    if key.strip() == 'ElementDataFile':
      break
  return fields, end


def _read_nrrd_fields(path: str) -> tuple[dict[str, str], int]:
  """Returns the fields of an NRRD header, and where it ends.

  Raises:
    ScanError: it is not one, or one that SimpleITK does not survive: it repeats
      a field that it does not understand in messages of limited length.
  """
  with open(path, 'rb') as file:
    header = file.read(_HEADER_BYTES)
    is_whole = not file.read(1)
  # Like SimpleITK, which takes a lone carriage return for a part of the line.
  lines = header.split(b'\n')
  if not lines[0].startswith(b'NRRD'):
    raise errors.ScanError('unreadable', f'{path} is not an NRRD file')
  fields, end = {}, 0
  for line in lines:
    end += len(line) + 1
    text = line.decode('utf-8', 'surrogateescape').strip()
    if not text:
      return fields, end
    key, separator, value = text.partition(': ')
    if separator:
      # `data file` may be written as one word.
      fields[key.strip().lower().replace(' ', '')] = value.strip()
    is_free = key == 'content' or ':=' in key or line.startswith(b'#')
    if len(line) > _NRRD_LINE_BYTES and not is_free:
      raise errors.ScanError(
        'unreadable',
        f'{path} has a line of {len(line)} bytes in its header; at most'
        f' {_NRRD_LINE_BYTES} are wanted, but for comments',
      )
  if not is_whole:
    raise errors.ScanError(
      'unreadable',
      f'{path} has a header that does not end in {_HEADER_BYTES} bytes',
    )
  return fields, min(end, len(header))


def _file_beside(path: str, name: str) -> str:
  """Returns the path of a data file that a header names.

  Raises:
    ScanError: it is missing, lies outside the folder of the header, or is one
      of several.
  """
  if not _is_one_file_beside(name):
    raise errors.ScanError(
      'unreadable',
      f'{path} has its voxels in {name}; one file beside the header is wanted',
    )
  data = os.path.join(os.path.dirname(path), name)
  if not os.path.isfile(data):
    raise errors.ScanError('missing_raw', f'{path} needs {name} beside it')
  return data


def _is_one_file_beside(name: str) -> bool:
  return not (
    name.split()[0] == 'LIST'
    or '%' in name
    or os.path.isabs(name)
    or os.path.normpath(name).startswith('..')
  )
