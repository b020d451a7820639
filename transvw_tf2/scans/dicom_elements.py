"""Checks that DICOM files hold what their elements claim.

GDCM, which reads them for SimpleITK, looks at how much is left in a file before
it takes memory, but not in the file meta information, and not where it falls
back to readers for files that are not of the transfer syntax that they claim:
there it takes up to 4 GB for a file of 1 KB. It also passes over a file that is
cut short, which may be the last slice of a scan.

See DICOM PS3.5, section 7, and PS3.10, section 7.
"""

import os
import struct
from typing import BinaryIO
from typing import NamedTuple

from transvw_tf2.scans import errors

_PREAMBLE_BYTES = 128
_PREFIX = b'DICM'

_IMPLICIT = '1.2.840.10008.1.2'
_BIG_ENDIAN = '1.2.840.10008.1.2.2'
_EXPLICIT = '1.2.840.10008.1.2.1'
# Compressed images, but for those whose whole data set is deflated too.
_COMPRESSED = ('1.2.840.10008.1.2.4.', '1.2.840.10008.1.2.5')
_DEFLATED = ('1.2.840.10008.1.2.4.95', '1.2.840.10008.1.2.4.205')

# Value representations with a length of 32 bits, and of 16.
_LONG_VRS = frozenset(
  (b'OB', b'OD', b'OF', b'OL', b'OV', b'OW', b'SQ', b'SV', b'UC', b'UN')
  + (b'UR', b'UT', b'UV')
)
_SHORT_VRS = frozenset(
  (b'AE', b'AS', b'AT', b'CS', b'DA', b'DS', b'DT', b'FD', b'FL', b'IS')
  + (b'LO', b'LT', b'PN', b'SH', b'SL', b'SS', b'ST', b'TM', b'UI', b'UL')
  + (b'US',)
)

_META_GROUP = 0x0002
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_PIXEL_DATA = (0x7FE0, 0x0010)
# Items and what ends them and sequences have this group, and a length alone.
_ITEM_GROUP = 0xFFFE
_ITEM = (_ITEM_GROUP, 0xE000)
_SEQUENCE_END = (_ITEM_GROUP, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
# Holds the headers of most files.
_BLOCK_BYTES = 1 << 14
# What GDCM may take for a file that breaks the rules in a way it may know.
_IN_DOUBT_BYTES = 1 << 26


class _Element(NamedTuple):
  """Header of an element: tag, VR (None without), length, start of the value.

  A length of `_UNDEFINED` means that there are items up to a delimiter.
  """

  tag: tuple[int, int]
  vr: bytes | None
  length: int
  start: int


def check(path: str) -> None:
  """Checks the lengths of the elements of a file.

  Reads the headers of the elements alone, about 2 us each.

  What cannot be judged is left to GDCM: a file without a preamble, an unknown
  or deflated transfer syntax, what follows an element of undefined length and
  VR UN that holds explicit elements (they are to be implicit). Elements without
  a VR among others with one, which some scanners write, are good where they can
  be read so.

  Args:
    path: of any file.

  Raises:
    ScanError: an element is longer than the rest of the file, or the first
      after the file meta information denies the transfer syntax.
    OSError: the file cannot be read.
  """
  with open(path, 'rb') as file:
    if file.read(_PREAMBLE_BYTES + 4)[_PREAMBLE_BYTES:] == _PREFIX:
      _Walk(path, file).check()


class _Walk:
  """Goes from element to element of an open file."""

  def __init__(self, path: str, file: BinaryIO):
    self._path = path
    self._file = file
    self._size = os.fstat(file.fileno()).st_size
    self._syntax = None
    self._block = b''
    self._block_start = 0
    self._set_order('<')

  def _set_order(self, order: str) -> None:
    self._unpack_tag = struct.Struct(f'{order}HH').unpack_from
    self._unpack_short = struct.Struct(f'{order}H').unpack_from
    self._unpack_long = struct.Struct(f'{order}I').unpack_from

  def check(self) -> None:
    start = self._check_meta(_PREAMBLE_BYTES + len(_PREFIX))
    if start is None or self._syntax is None or self._syntax in _DEFLATED:
      return
    if self._syntax == _BIG_ENDIAN:
      self._set_order('>')
    if self._syntax == _IMPLICIT:
      self._check_data(start, is_implicit=True)
    elif self._syntax in (_BIG_ENDIAN, _EXPLICIT) or self._syntax.startswith(
      _COMPRESSED
    ):
      self._check_first(start)
      self._check_data(start, is_implicit=False)

  def _check_meta(self, at: int) -> int | None:
    """Returns where the data set starts; None where that is unknown."""
    while head := self._head(at):
      tag = self._unpack_tag(head)
      if tag[0] != _META_GROUP:
        break
      one = self._explicit(tag, at, head)
      if one is None:
        # Some files have it implicit.
        one = self._implicit(tag, at, head)
        self._check_length(one, in_doubt=True)
        return None
      self._check_length(one)
      if one.length == _UNDEFINED:
        return None
      # Of two, GDCM takes the first.
      if one.tag == _TRANSFER_SYNTAX and self._syntax is None:
        self._file.seek(one.start)
        value = self._file.read(min(one.length, 64))
        self._syntax = value.decode('latin-1').rstrip('\0 ')
      at = one.start + one.length
    return at

  def _check_first(self, at: int) -> None:
    """Checks that a data set with VRs starts with one.

    GDCM would read it without, but tries what takes the memory before.
    """
    head = self._head(at)
    tag = self._unpack_tag(head) if head else None
    if head and self._explicit(tag, at, head) is None:
      raise errors.ScanError(
        'damaged',
        f'{self._path} claims the transfer syntax {self._syntax}, whose'
        f' elements have a VR; the first, {_name(tag)}, has none',
      )

  def _check_data(self, at: int, is_implicit: bool) -> None:
    # Open sequences inside of an element of VR UN.
    depth = 0
    while head := self._head(at):
      tag = self._unpack_tag(head)
      if tag[0] == _ITEM_GROUP:
        # Into items, and past what ends them.
        depth -= tag == _SEQUENCE_END and depth > 0
        at += 8
        continue
      if is_implicit or depth:
        if depth and head[4:6] in _LONG_VRS | _SHORT_VRS:
          return
        one = self._implicit(tag, at, head)
      else:
        one = self._explicit(tag, at, head) or self._broken(tag, at, head)
      # GDCM takes no memory for a sequence.
      if one.vr != b'SQ':
        self._check_length(one)
      if one.vr == b'SQ':
        at = one.start
      elif one.length == _UNDEFINED and one.tag == _PIXEL_DATA:
        at = self._check_fragments(one)
      elif one.length == _UNDEFINED:
        # Its items are implicit whatever the transfer syntax.
        depth += not is_implicit
        at = one.start
      else:
        at = one.start + one.length

  def _check_fragments(self, pixels: _Element) -> int:
    """Returns where the fragments of compressed pixel data end."""
    at = pixels.start
    while (head := self._head(at)) and self._unpack_tag(head) == _ITEM:
      one = self._implicit(pixels.tag, at, head)
      self._check_length(one)
      if one.length == _UNDEFINED:
        break
      at = one.start + one.length
    return at

  def _check_length(self, one: _Element, in_doubt: bool = False) -> None:
    left = max(0, self._size - one.start)
    if one.length <= left or one.length == _UNDEFINED:
      return
    if in_doubt and one.length <= _IN_DOUBT_BYTES:
      return
    raise errors.ScanError(
      'truncated',
      f'{self._path} claims {one.length} bytes for its element'
      f' {_name(one.tag)}, but has {left} left: it is cut short, damaged, or'
      f' not of the transfer syntax {self._syntax or "(0002,0010)"}',
    )

  def _head(self, at: int) -> bytes:
    """Returns the first bytes of an element, none at the end of the file."""
    offset = at - self._block_start
    if not 0 <= offset <= len(self._block) - 12:
      self._file.seek(at)
      self._block = self._file.read(_BLOCK_BYTES)
      self._block_start, offset = at, 0
    head = self._block[offset : offset + 12]
    return head if len(head) >= 8 else b''

  def _explicit(self, tag, at: int, head: bytes) -> _Element | None:
    """Returns an element that has a VR; None if it has none."""
    vr = head[4:6]
    if vr in _SHORT_VRS:
      return _Element(tag, vr, *self._unpack_short(head, 6), at + 8)
    if vr in _LONG_VRS and len(head) == 12:
      return _Element(tag, vr, *self._unpack_long(head, 8), at + 12)
    return None

  def _implicit(self, tag, at: int, head: bytes) -> _Element:
    """Returns an element as it is without a VR."""
    (length,) = self._unpack_long(head, 4)
    if length == 13 and tag not in ((0x0008, 0x0070), (0x0008, 0x0080)):
      length = 10  # a program of old wrote so, and GDCM reads it so
    return _Element(tag, None, length, at + 8)

  def _broken(self, tag, at: int, head: bytes) -> _Element:
    """Returns an element without a VR among others with one.

    As the first of what GDCM tries that fits: a length of 32 bits, or of 16
    behind what is no VR.
    """
    one = self._implicit(tag, at, head)
    (short,) = self._unpack_short(head, 6)
    left = self._size - one.start
    if one.length > left >= short and one.length != _UNDEFINED:
      return one._replace(length=short)
    return one


def _name(tag: tuple[int, int]) -> str:
  return f'({tag[0]:04x},{tag[1]:04x})'
