"""DICOM slices in other transfer syntaxes than SimpleITK writes."""

import os
import struct

IMPLICIT = '1.2.840.10008.1.2'
EXPLICIT = '1.2.840.10008.1.2.1'
BIG_ENDIAN = '1.2.840.10008.1.2.2'

# Tags that start what SimpleITK writes, and that end the file.
_FIRST = (0x0008, 0x0016)
PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED = 0xFFFFFFFF
_LONG = (b'OB', b'OW', b'SQ', b'UN', b'UT')
_VRS = {
  **{(0x0008, element): b'UI' for element in (0x0016, 0x0018)},
  **{(0x0020, element): b'UI' for element in (0x000D, 0x000E)},
  **{(0x0020, element): b'DS' for element in (0x0032, 0x0037)},
  **{(0x0028, element): b'US' for element in (0x0002, 0x0010, 0x0011)},
  **{(0x0028, element): b'US' for element in range(0x0100, 0x0104)},
  **{(0x0028, element): b'DS' for element in (0x0030, 0x1052, 0x1053)},
  (0x0008, 0x0020): b'DA',
  (0x0008, 0x0030): b'TM',
  (0x0008, 0x0060): b'CS',
  (0x0018, 0x0088): b'DS',
  (0x0020, 0x0013): b'IS',
  (0x0028, 0x0004): b'CS',
  PIXEL_DATA: b'OW',
}


def element(tag, vr, value=b'', *, length=None, order='<'):
  """Encodes an element; without a VR where that is None."""
  length = len(value) if length is None else length
  head = struct.pack(f'{order}HH', *tag)
  if vr is None:
    return head + struct.pack(f'{order}I', length) + value
  if vr in _LONG:
    return head + vr + b'\0\0' + struct.pack(f'{order}I', length) + value
  return head + vr + struct.pack(f'{order}H', length) + value


def item(value, *, length=None, order='<'):
  """Encodes an item of a sequence, delimited where its length is undefined."""
  end = element((0xFFFE, 0xE00D), None, order=order)
  value += end if length == UNDEFINED else b''
  return element((0xFFFE, 0xE000), None, value, length=length, order=order)


def sequence_end(order='<'):
  """Encodes what ends a sequence of undefined length."""
  return element((0xFFFE, 0xE0DD), None, order=order)


def claim(data, syntax):
  """Replaces the transfer syntax of a slice from SimpleITK, not its data."""
  value = syntax.encode() + b'\0' * (len(syntax) % 2)
  old = element((0x0002, 0x0010), b'UI', IMPLICIT.encode() + b'\0')
  new = element((0x0002, 0x0010), b'UI', value)
  assert data.count(old) == 1
  # The length of the group, behind the preamble.
  (size,) = struct.unpack_from('<I', data, 140)
  assert data[144 + size :].startswith(_start())
  size = struct.pack('<I', size + len(new) - len(old))
  return (data[:140] + size + data[144:]).replace(old, new)


def encode(data, syntax, more=b'', *, vrs=None):
  """Encodes a slice from SimpleITK, which is implicit, in another syntax.

  Args:
    data: the file.
    syntax: `IMPLICIT`, `EXPLICIT` or `BIG_ENDIAN`.
    more: encoded elements that come before those of group 0020.
    vrs: replaces that of some tags.
  """
  order = '>' if syntax == BIG_ENDIAN else '<'
  vrs = _VRS | (vrs or {})
  at = data.index(_start())
  parts = [claim(data, syntax)[: at - len(data)]]
  while at < len(data):
    *tag, length = struct.unpack_from('<HHI', data, at)
    tag, value = tuple(tag), data[at + 8 : at + 8 + length]
    at += 8 + length
    vr = vrs.get(tag, b'LO')
    if order == '>' and vr in (b'US', b'OW'):
      value = b''.join(value[k : k + 2][::-1] for k in range(0, length, 2))
    if more and tag[0] >= 0x0020:
      parts.append(more)
      more = b''
    parts.append(
      element(tag, None if syntax == IMPLICIT else vr, value, order=order)
    )
  return b''.join(parts)


def rewrite(folder, how):
  """Replaces every file of a folder by what `how` makes of its contents."""
  for name in sorted(os.listdir(folder)):
    path = os.path.join(folder, name)
    with open(path, 'rb') as file:
      data = file.read()
    with open(path, 'wb') as file:
      file.write(how(data))
  return folder


def _start():
  return struct.pack('<HH', *_FIRST)
