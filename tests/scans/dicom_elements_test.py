"""Lengths of DICOM elements, against what SimpleITK takes of each file."""

import os
import struct
import time

import pytest
import SimpleITK as sitk

from tests.scans import dicom_files
from tests.scans import scan_files
from transvw_tf2.scans import dicom_elements
from transvw_tf2.scans import errors

_TAG = (0x0009, 0x1010)
_HUGE = 1 << 30
_UNDEFINED = dicom_files.UNDEFINED
_SYNTAXES = (
  dicom_files.IMPLICIT,
  dicom_files.EXPLICIT,
  dicom_files.BIG_ENDIAN,
)


@pytest.fixture(name='data', scope='module')
def _data(tmp_path_factory):
  """A slice as SimpleITK writes it, implicit."""
  folder = tmp_path_factory.mktemp('slice')
  scan_files.write_series(folder, scan_files.make_hu((8, 7, 1)))
  (name,) = os.listdir(folder)
  return (folder / name).read_bytes()


def _write(tmp_path, data):
  path = os.fspath(tmp_path / 'a.dcm')
  with open(path, 'wb') as file:
    file.write(data)
  return path


def _check_good(tmp_path, data, size=(8, 7, 1)):
  """Checks that a file passes, and that SimpleITK reads it too."""
  path = _write(tmp_path, data)
  dicom_elements.check(path)
  assert sitk.ReadImage(path).GetSize() == size


def _refused(tmp_path, data, reason='truncated'):
  path = _write(tmp_path, data)
  with pytest.raises(errors.ScanError) as caught:
    dicom_elements.check(path)
  assert caught.value.reason == reason
  assert path in caught.value.detail
  return caught.value.detail


def _order(syntax):
  return '>' if syntax == dicom_files.BIG_ENDIAN else '<'


def _element(syntax, tag, vr, value=b'', **settings):
  vr = None if syntax == dicom_files.IMPLICIT else vr
  return dicom_files.element(tag, vr, value, order=_order(syntax), **settings)


@pytest.mark.parametrize('syntax', _SYNTAXES)
def test_transfer_syntaxes(tmp_path, data, syntax):
  _check_good(tmp_path, dicom_files.encode(data, syntax))


@pytest.mark.parametrize('length', [None, _UNDEFINED])
@pytest.mark.parametrize('item_length', [None, _UNDEFINED])
@pytest.mark.parametrize('syntax', _SYNTAXES)
def test_sequences(tmp_path, data, syntax, length, item_length):
  order = _order(syntax)
  end = dicom_files.sequence_end(order) if length else b''
  code = _element(syntax, (0x0008, 0x0100), b'SH', b'CODE')
  sequence = b''
  for _ in range(2):
    items = dicom_files.item(code, length=item_length, order=order)
    items += dicom_files.item(code + sequence, length=item_length, order=order)
    sequence = _element(
      syntax, (0x0018, 0x9346), b'SQ', items + end, length=length
    )
  _check_good(tmp_path, dicom_files.encode(data, syntax, sequence))


@pytest.mark.parametrize('syntax', [dicom_files.EXPLICIT])
def test_an_unknown_sequence_is_implicit(tmp_path, data, syntax):
  code = dicom_files.element((0x0009, 0x0100), None, b'CODE')
  end = dicom_files.sequence_end()
  inner = dicom_files.element(
    *((0x0009, 0x1011), None, dicom_files.item(code) + end),
    length=_UNDEFINED,
  )
  unknown = dicom_files.element(
    *(_TAG, b'UN'),
    dicom_files.item(code + inner + code, length=_UNDEFINED) + end,
    length=_UNDEFINED,
  )
  # What follows is explicit again: it would be too long otherwise.
  _check_good(tmp_path, dicom_files.encode(data, syntax, unknown))
  huge = dicom_files.element(_TAG, b'OB', length=_HUGE)
  detail = _refused(tmp_path, dicom_files.encode(data, syntax, unknown + huge))
  assert f'{_HUGE} bytes for its element (0009,1010)' in detail


def test_an_unknown_sequence_that_is_explicit_is_left_to_gdcm(tmp_path, data):
  code = dicom_files.element((0x0009, 0x0100), b'LO', b'CODE')
  unknown = dicom_files.element(
    *(_TAG, b'UN', dicom_files.item(code) + dicom_files.sequence_end()),
    length=_UNDEFINED,
  )
  _check_good(tmp_path, dicom_files.encode(data, dicom_files.EXPLICIT, unknown))


def test_private_elements_without_a_vr(tmp_path, data):
  private = dicom_files.element(_TAG, None, b'abcdefgh')
  _check_good(tmp_path, dicom_files.encode(data, dicom_files.EXPLICIT, private))


@pytest.mark.parametrize('compressor', ['JPEG', 'JPEG2000'])
def test_compressed_pixels(tmp_path, compressor):
  scan_files.write_series(
    tmp_path / 'x', scan_files.make_hu((64, 65, 1)), compressor=compressor
  )
  (name,) = os.listdir(tmp_path / 'x')
  data = (tmp_path / 'x' / name).read_bytes()
  _check_good(tmp_path, data, (64, 65, 1))
  # The first fragment, which is empty, and the one with the pixels.
  start = data.rindex(b'\xe0\x7f\x10\x00OB') + 12
  for at in (start, start + 8):
    assert data[at : at + 4] == b'\xfe\xff\x00\xe0'
    long = struct.pack('<I', len(data))
    _refused(tmp_path, data[: at + 4] + long + data[at + 8 :])


@pytest.mark.parametrize('syntax', _SYNTAXES)
def test_an_image_within_a_sequence(tmp_path, data, syntax):
  pixels = _element(syntax, dicom_files.PIXEL_DATA, b'OW', b'\0' * 8)
  icon = _element(
    *(syntax, (0x0008, 0x0200), b'SQ'),
    dicom_files.item(pixels, order=_order(syntax)),
  )
  _check_good(tmp_path, dicom_files.encode(data, syntax, icon))
  huge = _element(syntax, _TAG, b'OB', length=_HUGE)
  _refused(tmp_path, dicom_files.encode(data, syntax, icon + huge))


@pytest.mark.parametrize('syntax', _SYNTAXES)
@pytest.mark.parametrize('vr', [b'OB', b'UN', b'UT'])
def test_an_element_longer_than_the_file(tmp_path, data, syntax, vr):
  element = _element(syntax, _TAG, vr, length=_HUGE)
  damaged = dicom_files.encode(data, syntax, element)
  detail = _refused(tmp_path, damaged)
  assert f'claims {_HUGE} bytes for its element (0009,1010)' in detail
  assert syntax in detail


@pytest.mark.parametrize('syntax', _SYNTAXES)
def test_the_pixels_are_cut_short(tmp_path, data, syntax):
  whole = dicom_files.encode(data, syntax)
  for left in (1, 50):
    assert '(7fe0,0010)' in _refused(tmp_path, whole[:-left])
  # What SimpleITK does not mind.
  for tail in (b'\n', b'\0' * 3):
    _check_good(tmp_path, whole + tail)
  # It reads a private element there, but none that is too long.
  more = _element(syntax, (0xFFFC, 0xFFFC), b'OB', b'\0' * 8)
  _check_good(tmp_path, whole + more)
  _refused(tmp_path, whole + more[:-8])


def test_file_meta_information(tmp_path, data):
  at = data.index(b'\x02\x00\x01\x00OB') + 8
  damaged = data[:at] + struct.pack('<I', _HUGE) + data[at + 4 :]
  assert '(0002,0001)' in _refused(tmp_path, damaged)
  # Without a VR, which GDCM would try.
  private = dicom_files.element((0x0002, 0x0001), None, length=_HUGE)
  assert '(0002,0001)' in _refused(tmp_path, data[:132] + private)


@pytest.mark.parametrize(
  'syntax',
  [
    *(dicom_files.EXPLICIT, dicom_files.BIG_ENDIAN),
    *('1.2.840.10008.1.2.4.70', '1.2.840.10008.1.2.5'),
  ],
)
def test_implicit_elements_in_an_explicit_syntax(tmp_path, data, syntax):
  detail = _refused(tmp_path, dicom_files.claim(data, syntax), 'damaged')
  assert f'the transfer syntax {syntax}, whose elements have a VR' in detail


def test_the_first_of_two_transfer_syntaxes_counts(tmp_path, data):
  value = dicom_files.EXPLICIT.encode() + b'\0'
  more = dicom_files.element((0x0002, 0x0010), b'UI', value)
  at = data.index(b'\x02\x00\x10\x00UI')
  size = struct.pack('<I', struct.unpack_from('<I', data, 140)[0] + len(more))
  twice = data[:140] + size + data[144:at] + more + data[at:]
  assert dicom_files.EXPLICIT in _refused(tmp_path, twice, 'damaged')


@pytest.mark.parametrize(
  'syntax', ['1.2.840.10008.1.2.1.99', '1.2.840.10008.1.2.4.95', '1.2', '']
)
def test_what_cannot_be_judged_is_left_to_gdcm(tmp_path, data, syntax):
  damaged = dicom_files.claim(data, syntax)[:-4]
  dicom_elements.check(_write(tmp_path, damaged))


def test_what_is_no_dicom(tmp_path, data):
  for other in (b'', b'DICM', b'\0' * 132, b'text ' * 99, data[132:-4]):
    dicom_elements.check(_write(tmp_path, other))
  for left in range(128, 140):
    dicom_elements.check(_write(tmp_path, data[:left]))


def test_it_reads_headers_alone(tmp_path, data):
  path = _write(tmp_path, dicom_files.encode(data, dicom_files.EXPLICIT))
  # A sparse file: a gigabyte of pixels, which would take a second to read.
  at = os.path.getsize(path) - 112
  with open(path, 'r+b') as file:
    file.seek(at - 4)
    file.write(struct.pack('<I', _HUGE))
  os.truncate(path, at + _HUGE)
  started = time.process_time()
  dicom_elements.check(path)
  assert time.process_time() - started < 0.1
