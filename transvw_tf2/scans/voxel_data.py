"""Checks that a file holds the voxels that its header promises.

SimpleITK takes memory for whatever size a header claims, fills up a NIfTI file
that was cut short with zeros, and reads damaged compressed data without an
error. A scan is checked before its voxels are read.
"""

import dataclasses
import gzip
import math
import os
import zlib

import numpy as np

from transvw_tf2.scans import errors

# 1024 x 1024 x 1024: larger than any chest CT.
MAX_VOXELS = 2**30

# zlib makes at most 1032 bytes of one.
_MAX_DEFLATION = 1032
# Few enough that a block makes at most 17 MB.
_BLOCK_BYTES = 1 << 14
_FLOAT_BYTES = 1 << 20

RAW = 'raw'
DEFLATED = 'deflated'
TEXT = 'text'


@dataclasses.dataclass(frozen=True)
class VoxelData:
  """Where an image file stores its voxels.

  Attributes:
    path: the file that holds them.
    start: bytes of `path` before them, or before the compressed data.
    encoding: `RAW`, `DEFLATED` (zlib or gzip) or `TEXT`.
    skipped: bytes of the inflated data before the voxels.
    dtype: type of the stored numbers of NIfTI, which may differ from those
      that SimpleITK gives.
  """

  path: str
  start: int = 0
  encoding: str = RAW
  skipped: int = 0
  dtype: np.dtype | None = None


def check_size(path: str, size) -> None:
  """Raises ScanError for more than `MAX_VOXELS` voxels, or none."""
  if min(size) < 1 or math.prod(size) > MAX_VOXELS:
    raise errors.ScanError(
      'too_large' if min(size) > 0 else 'unreadable',
      f'{path} claims {_by(size)} voxels; 1 to {MAX_VOXELS} can be read',
    )


def check_claim(path: str, size, voxel_bytes: int, stored: int) -> None:
  """Checks that `stored` bytes can hold an image, however well compressed.

  Raises:
    ScanError: they cannot, or the size is absurd in itself.
  """
  check_size(path, size)
  if math.prod(size) * voxel_bytes > _MAX_DEFLATION * stored:
    raise errors.ScanError(
      'truncated',
      f'{path} claims {_by(size)} voxels, which its {stored} bytes cannot hold',
    )


def check_stored(data: VoxelData, size, voxel_bytes: int) -> None:
  """Checks from the size of the file alone that the voxels can be there.

  Args:
    data: from `headers.locate`.
    size: voxels along each axis.
    voxel_bytes: bytes per voxel in memory.

  Raises:
    ScanError: the size is absurd or the file too short.
  """
  stored = os.path.getsize(data.path)
  voxel_bytes = _stored_bytes(data, voxel_bytes)
  check_claim(data.path, size, voxel_bytes, stored)
  if data.start > stored:
    raise errors.ScanError(
      'truncated',
      f'{data.path} has {stored} bytes; its voxels begin after {data.start}',
    )
  if data.encoding == DEFLATED:
    return
  # As text, a voxel takes a digit and a space.
  wanted = data.start + math.prod(size) * (
    2 if data.encoding == TEXT else voxel_bytes
  )
  if stored < wanted - (data.encoding == TEXT):
    raise errors.ScanError(
      'truncated',
      f'{data.path} has {stored} bytes; its header says {wanted}',
    )


def check_deflated(data: VoxelData, size, voxel_bytes: int) -> None:
  """Inflates compressed voxels once, in little memory, to check them.

  Costs about as long as SimpleITK takes to read them. Does nothing for others.

  Args:
    data: from `headers.locate`.
    size: voxels along each axis.
    voxel_bytes: bytes per voxel in memory.

  Raises:
    ScanError: the data are cut short, or their checksum is wrong.
  """
  if data.encoding != DEFLATED:
    return
  wanted = data.skipped + math.prod(size) * _stored_bytes(data, voxel_bytes)
  try:
    found, whole = _inflate(data.path, data.start, wanted)
  except zlib.error as error:
    raise errors.ScanError(
      'damaged', f'{data.path} holds damaged compressed data: {error}'
    ) from error
  if not whole:
    raise errors.ScanError(
      'truncated',
      f'{data.path} is cut short: {found} bytes of {wanted} once inflated',
    )


def check_finite(data: VoxelData, size) -> None:
  """Looks for NaN in a NIfTI file of floats, of which SimpleITK makes 0.

  Args:
    data: from `headers.locate`, checked.
    size: voxels along each axis.

  Raises:
    ScanError: a value is NaN or infinite.
  """
  if data.dtype is None or data.dtype.kind != 'f':
    return
  with (gzip.open if data.encoding == DEFLATED else open)(
    data.path, 'rb'
  ) as file:
    file.seek(data.start + data.skipped)
    left = math.prod(size) * data.dtype.itemsize
    while block := file.read(min(left, _FLOAT_BYTES)):
      if not np.isfinite(np.frombuffer(block, data.dtype)).all():
        raise errors.ScanError(
          'not_finite', f'{data.path} holds NaN or infinite values'
        )
      left -= len(block)


def _stored_bytes(data: VoxelData, voxel_bytes: int) -> int:
  return voxel_bytes if data.dtype is None else data.dtype.itemsize


def _inflate(path: str, start: int, wanted: int) -> tuple[int, bool]:
  """Returns how many bytes were inflated, and whether they are all there."""
  total = 0
  stream = zlib.decompressobj(wbits=47)  # zlib or gzip, as the data say
  with open(path, 'rb') as file:
    file.seek(start)
    block = file.read(_BLOCK_BYTES)
    # What follows the voxels is not looked at.
    while block and total <= wanted:
      total += len(stream.decompress(block))
      block = b''
      if stream.eof and total < wanted:
        # A gzip file may hold several streams, one after the other.
        block = stream.unused_data
        stream = zlib.decompressobj(wbits=47)
      if not stream.eof:
        block = block or file.read(_BLOCK_BYTES)
  return total, total > wanted or (total == wanted and stream.eof)


def _by(size) -> str:
  return ' x '.join(map(str, size))
