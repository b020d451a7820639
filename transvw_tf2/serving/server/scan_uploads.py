"""Reads the scan in a file that a client sent, trusting nothing in it."""

import errno
import os
import shutil
import stat
import struct
import tempfile
from typing import BinaryIO
import zipfile
import zlib

import numpy as np

from transvw_tf2.scans import reader
from transvw_tf2.serving.server import request_errors

# How files begin, and the suffix by which they are read.
_ZIP = b'PK\x03\x04'
_STARTS = (
  (b'\x1f\x8b', '.nii.gz'),
  (b'NRRD0', '.nrrd'),
  (b'ObjectType', '.mha'),
  (b'NDims', '.mha'),
  (b'\x5c\x01\x00\x00', '.nii'),
  (b'\x00\x00\x01\x5c', '.nii'),
)
_FORMATS = '.zip (a .mhd and its .raw), .mha, .nii, .nii.gz or .nrrd'
_HEADERS = ('.mhd', '.mha', '.nhdr', '.nrrd', '.nii', '.nii.gz')

# What zipfile raises for broken, encrypted and unknown archives.
_BAD_ZIP = (
  *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, IndexError),
  *(RuntimeError, NotImplementedError, ValueError, OverflowError),
)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_MOST_FILES = 16
_LONGEST_NAME = 128
_BLOCK_BYTES = 1 << 20
# The bytes of a voxel in the file are known late; more than most have.
_VOXEL_BYTES = 4


def read(file: BinaryIO, cube_shape, most_bytes: int) -> np.ndarray:
  """Reads a scan; closes the file.

  All that is written lies in a temporary folder of this call, which is gone
  when it returns.

  Args:
    file: what the client sent, at any position.
    cube_shape: voxels [x, y, z] that the scan must hold.
    most_bytes: that it may have once unpacked.

  Returns:
    int16 [x, y, z], HU.

  Raises:
    request_errors.RequestError: it is none of the formats (415), too large
      (413), or broken or no CT scan (400).
  """
  with file, tempfile.TemporaryDirectory(prefix='transvw_scan_') as folder:
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    if start.startswith(_ZIP):
      path = _unpack(file, folder, most_bytes)
    else:
      path = os.path.join(folder, 'scan' + _suffix(start))
      with open(path, 'wb') as copy:
        shutil.copyfileobj(file, copy, _BLOCK_BYTES)
    try:
      size = reader.read_geometry(path).size
      _check_voxels(size, most_bytes)
      return reader.read_scan(path, cube_shape=cube_shape).hu
    except reader.ScanError as error:
      # Where the file lay here is nothing to a client.
      reason = str(error).replace(folder + os.sep, '')
      raise request_errors.RequestError(reason) from error


def _suffix(start):
  for beginning, suffix in _STARTS:
    if start.startswith(beginning):
      return suffix
  raise request_errors.RequestError(
    f'the body is not a scan, wanted the bytes of one file: {_FORMATS}', 415
  )


def _check_voxels(size, most_bytes):
  # As Python integers: a claim may be larger than any of NumPy's.
  voxels = int(size[0]) * int(size[1]) * int(size[2])
  if voxels * _VOXEL_BYTES > most_bytes:
    raise request_errors.RequestError(
      f'the scan has {voxels} voxels, wanted at most '
      f'{most_bytes // _VOXEL_BYTES}',
      413,
    )


def _unpack(file, folder, most_bytes):
  """Unpacks an archive into `folder` and returns the path of its header."""
  try:
    with zipfile.ZipFile(file) as archive:
      members = [one for one in archive.infolist() if not one.is_dir()]
      names = _check_members(members, most_bytes)
      left = most_bytes
      for member, name in zip(members, names, strict=True):
        with archive.open(member) as source:
          left = _copy(source, os.path.join(folder, name), left)
  except _BAD_ZIP as error:
    raise request_errors.RequestError(
      f'the .zip cannot be unpacked: {error}'
    ) from error
  except OSError as error:
    # So ends the way to a place before the file, where an archive points to.
    if error.errno != errno.EINVAL:
      raise
    raise request_errors.RequestError(
      'the .zip cannot be unpacked: its parts lie outside of it'
    ) from error
  headers = [name for name in names if name.endswith(_HEADERS)]
  if len(headers) != 1:
    raise request_errors.RequestError(
      f'the .zip holds {len(headers)} scans, wanted one: a .mhd and its .raw, '
      'for instance'
    )
  return os.path.join(folder, headers[0])


def _check_members(members, most_bytes):
  """Returns the names to unpack to; the archive may lie about all else."""
  if not 1 <= len(members) <= _MOST_FILES:
    raise request_errors.RequestError(
      f'the .zip holds {len(members)} files, wanted 1 to {_MOST_FILES}'
    )
  if sum(member.file_size for member in members) > most_bytes:
    raise _too_large(most_bytes)
  if not all(member.compress_type in _METHODS for member in members):
    raise request_errors.RequestError(
      'the .zip is compressed otherwise than by deflate, which is wanted'
    )
  folders, names = set(), []
  for member in members:
    parts = member.filename.split('/')
    kind = stat.S_IFMT(member.external_attr >> 16)
    if (
      any(part in ('', '.', '..') for part in parts)
      or any(one in member.filename for one in ('\\', ':', '\0'))
      or not member.filename.isprintable()
      or len(parts[-1].encode(errors='replace')) > _LONGEST_NAME
      or kind not in (0, stat.S_IFREG)
    ):
      raise request_errors.RequestError(
        f'the .zip holds {member.filename[:80]!r}, wanted plain files with '
        'plain relative names'
      )
    folders.add(tuple(parts[:-1]))
    names.append(parts[-1])
  if len(folders) > 1 or len(set(names)) < len(names):
    raise request_errors.RequestError(
      'the .zip holds files in several folders or twice, wanted one folder'
    )
  return names


def _copy(source, path, left):
  """Copies at most `left` bytes, and returns how many remain of them."""
  with open(path, 'xb') as target:
    while block := source.read(_BLOCK_BYTES):
      left -= len(block)
      if left < 0:
        raise _too_large(None)
      target.write(block)
  return left


def _too_large(most_bytes):
  limit = '' if most_bytes is None else f' of {most_bytes} bytes'
  return request_errors.RequestError(
    f'the .zip is too large once unpacked, wanted at most the limit{limit}', 413
  )
