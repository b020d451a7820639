"""Damages valid files: blindly byte by byte, or knowing their structure.

Every function takes a NumPy Generator, which decides everything, and what is to
be damaged, and returns a damaged copy.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import csv
import io
import json
import pickle
import re
import struct
import zipfile

import numpy as np

# By name: where a file that must not be read lies, seen from that of a case.
OUTSIDE = '../outside'
# What the code in a hostile file would make in the working directory.
CANARY = 'canary'

_INTEGERS = (
  *(0, 1, -1, 2, 3, 7, 8, 9, 16, 255, 256, 32767, 32768, 65535, 65536),
  *(10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63),
  *(2**64, -(2**31), -(2**63), 10**30),
)
_NUMBERS = (
  *map(str, _INTEGERS),
  *('0.0', '-0.0', '1e-320', '1e308', '1e400', '-1e400', 'nan', 'NaN', 'inf'),
  *('-Infinity', '0x10', '1_000', '1,5', '1e', '', ' ', '٣', '1' * 400),
  *('9' * 5000, '1.5', '-0.7', '1e6', '00008'),
)
_WORDS = (
  *('', ' ', '\0', '"', "'", ',', ';', '\n', '\r', '\t', '#', '%s', '%n%n'),
  *('..', '/', '/etc/passwd', '../x', OUTSIDE, '~', '.', '*', 'x' * 300),
  *('True', 'False', 'None', 'null', 'LOCAL', 'LIST', '\ufeff', '\u2028'),
  *('\u00e9', '\U0001f600', '\ud800', '=', ':', '{}', '[]', '$HOME', '`id`'),
  *("__import__('os').mkdir('canary')", '\x1b[31m', 'a\nb', 'x' * 70_000),
)
_STRUCTS = ('b', 'h', 'i', 'q', 'f', 'd')

Files = dict[str, bytes]


class MakeCanary:
  """Pickles to what makes a folder when it is unpickled."""

  def __reduce__(self):
    import os

    return os.mkdir, (CANARY,)


def choose(rng, options: Sequence):
  """Returns one of several, each as likely."""
  return options[int(rng.integers(len(options)))]


def random_bytes(rng, data: bytes) -> bytes:
  """Flips, overwrites, cuts, repeats or inserts bytes."""
  kind = int(rng.integers(9))
  at = int(rng.integers(len(data) + 1))
  length = int(rng.integers(1, 1 + choose(rng, (1, 8, 64, 1024))))
  if kind == 0:
    return data[:at]
  if kind == 1:
    return data + rng.bytes(length)
  if kind == 2:
    return data[:at] + rng.bytes(length) + data[at:]
  if kind == 3:
    return data[:at] + data[at + length :]
  if kind == 4:
    return data[:at] + data[at : at + length] * 2 + data[at + length :]
  if kind == 5:
    fill = choose(rng, (b'\0', b'\xff', b' ', b'\n'))
    return data[:at] + fill * length + data[at + length :]
  if kind == 6:
    return data[:at] + integer_bytes(rng) + data[at + 4 :]
  if kind == 7 and not rng.integers(5):
    return b''
  changed = bytearray(data)
  for place in rng.integers(0, max(len(data), 1), int(rng.integers(1, 9))):
    if data:
      changed[place] ^= 1 << int(rng.integers(8))
  return bytes(changed)


def integer_bytes(rng) -> bytes:
  """Returns a number that tends to break things, as some program writes it."""
  order, kind = choose(rng, '<>'), choose(rng, _STRUCTS)
  if kind in 'fd':
    value = float(choose(rng, (0, -1, 1e-40, 1e30, np.nan, np.inf, -np.inf)))
    return struct.pack(order + kind, value)
  size = struct.calcsize(kind)
  value = int(choose(rng, _INTEGERS)) % 2 ** (8 * size)
  return value.to_bytes(size, 'little' if order == '<' else 'big')


def value_text(rng) -> str:
  """Returns a word or a number that tends to break things."""
  return str(choose(rng, _NUMBERS if rng.integers(2) else _WORDS))


def encode(text: str) -> bytes:
  """Encodes text, lone surrogates too."""
  return text.encode('utf-8', 'surrogatepass')


def text_tokens(rng, data: bytes) -> bytes:
  """Replaces, drops or repeats words, numbers, marks and lines of a text."""
  text = data.decode('utf-8', 'replace')
  kind = int(rng.integers(5))
  if kind == 0:
    lines = text.splitlines(keepends=True) or ['']
    at, other = (int(rng.integers(len(lines))) for _ in range(2))
    if rng.integers(2):
      lines[at], lines[other] = lines[other], lines[at]
    else:
      lines[at : at + 1] = lines[at : at + 1] * choose(rng, (0, 2, 50))
    return encode(''.join(lines))
  if kind == 1:
    at = int(rng.integers(len(text) + 1))
    return encode(text[:at] + value_text(rng) + text[at:])
  if kind == 2 and rng.integers(2):
    return text.encode(choose(rng, ('utf-16', 'utf-8-sig', 'utf-32')))
  if kind == 2:
    return text.replace('\n', choose(rng, ('\r', '\r\n', '', '\0'))).encode()
  tokens = re.findall(r'[\w.+-]+|\s+|[^\w\s]', text) or ['']
  at = int(rng.integers(len(tokens)))
  tokens[at] = value_text(rng)
  return encode(''.join(tokens))


def header_field(
  rng, data: bytes, mark: str, known: Mapping[str, Sequence[str]]
) -> bytes:
  """Changes, drops, repeats or adds a line `key MARK value` of a header.

  Args:
    rng: decides.
    data: the header; what follows its last such line is left alone.
    mark: between key and value.
    known: keys, with values that are worth a try.
  """
  head, end = _split_header(data, mark)
  keys = [line.partition(mark)[0].strip() for line in head]
  key = choose(rng, sorted(known)) if rng.integers(3) else choose(rng, keys)
  at = keys.index(key) if key in keys else int(rng.integers(len(head)))
  kind = int(rng.integers(8))
  if kind == 0:
    head[at : at + 1] = []
  elif kind == 1:
    head.insert(int(rng.integers(len(head) + 1)), head[at])
  elif kind == 2:
    head[at] = encode(head[at]).decode('latin-1')[:-1] + value_text(rng) + '\n'
  else:
    value = head[at].partition(mark)[2].strip() if key in keys else ''
    line = f'{key}{mark}{_header_value(rng, value, known.get(key, ()))}\n'
    head[at : at + (key in keys)] = [line]
  return encode(''.join(head)) + end


def _split_header(data, mark):
  lines = data.split(b'\n')
  count = 0
  while count < len(lines) and (
    mark.encode() in lines[count] or lines[count].startswith((b'NRRD', b'#'))
  ):
    count += 1
  head = [line.decode('utf-8', 'replace') + '\n' for line in lines[:count]]
  return head or ['\n'], b'\n'.join(lines[count:])


def _header_value(rng, value, tries) -> str:
  if tries and rng.integers(2):
    return choose(rng, tries)
  parts = value.split() or ['']
  kind = int(rng.integers(4))
  if kind == 0:
    return ' '.join(parts + [choose(rng, parts)] * choose(rng, (1, 2, 500)))
  if kind == 1:
    return ' '.join(parts[:-1])
  parts[int(rng.integers(len(parts)))] = value_text(rng)
  return ' '.join(parts)


def struct_field(rng, data: bytes, fields: Sequence[tuple[int, str]]) -> bytes:
  """Overwrites a number at a known place.

  Args:
    rng: decides.
    data: of which a number is overwritten.
    fields: offset and type of the numbers, as in the module struct.
  """
  offset, kind = choose(rng, fields)
  if rng.integers(4) == 0:
    new = integer_bytes(rng)
  elif kind[-1] in 'fd':
    options = (0.0, -1.0, 1.5, 3.7e5, 1e30, -1e30, 1e-30, np.nan, np.inf)
    new = struct.pack(kind, choose(rng, options))
  else:
    size = struct.calcsize(kind)
    value = int(choose(rng, _INTEGERS)) % 2 ** (8 * size)
    new = value.to_bytes(size, 'big' if kind[0] == '>' else 'little')
  return data[:offset] + new + data[offset + len(new) :]


def json_value(rng, data: bytes) -> bytes:
  """Changes, drops, adds or nests a value of a JSON text."""
  if not rng.integers(5):
    return text_tokens(rng, data)
  try:
    document = json.loads(data)
  except (ValueError, RecursionError):  # it was damaged before
    return random_bytes(rng, data)
  places = list(_json_places(document))
  holder = {'': document}
  at, key = choose(rng, [(holder, ''), *places])
  kind = int(rng.integers(6))
  if kind == 0 and at is not holder:
    del at[key]
  elif kind == 1 and isinstance(at, list):
    at.extend(copy.deepcopy(at[:50]) * choose(rng, (1, 3)))
  elif kind == 1 and at is not holder:
    at[value_text(rng)[:50]] = at[key]
  else:
    at[key] = json_any(rng, at[key])
  text = json.dumps(holder[''], ensure_ascii=bool(rng.integers(2)))
  if not rng.integers(20):
    depth = choose(rng, (20, 2000, 200_000))
    text = text.replace('1', '[' * depth + ']' * depth, 1)
  return encode(text)


def json_any(rng, value=None):
  """Returns some JSON value, often like the one given but not quite."""
  options = (
    *(None, True, False, [], {}, '', 0, -1, 1.5, 2**31, 2**63, 10**400),
    *(1e308, float('nan'), float('inf'), [value], {'a': value}, [[]], [None]),
    *(str(value)[:500], [value] * 3, value_text(rng), value_text(rng)),
  )
  if isinstance(value, (int, float)) and rng.integers(2):
    return choose(rng, (*_INTEGERS, 0.5, 1e-300, float('nan')))
  return options[int(rng.integers(len(options)))]


def _json_places(value):
  if isinstance(value, dict):
    for key in value:
      yield value, key
      yield from _json_places(value[key])
  elif isinstance(value, list):
    for at in range(min(len(value), 20)):
      yield value, at
      yield from _json_places(value[at])


def csv_cells(rng, data: bytes) -> bytes:
  """Changes cells, columns, rows, quotes or the encoding of a table."""
  if not rng.integers(4):
    return text_tokens(rng, data)
  try:
    rows = list(csv.reader(io.StringIO(data.decode('utf-8', 'replace'))))
  except csv.Error:  # it was damaged before
    rows = []
  if not rows:
    return random_bytes(rng, data)
  kind = int(rng.integers(7))
  at = int(rng.integers(len(rows)))
  column = int(rng.integers(max(len(rows[at]), 1)))
  if kind == 0:
    for row in rows:
      del row[column : column + 1]
  elif kind == 1:
    for row in rows:
      row.insert(column, value_text(rng)[:200])
  elif kind == 2:
    rows[at : at + 1] = rows[at : at + 1] * choose(rng, (0, 2, 300))
  elif kind == 3:
    rows[at][column:] = rows[at][column + 1 :] * choose(rng, (0, 1, 2))
  elif rows[at]:
    rows[at][column] = value_text(rng)
  file = io.StringIO()
  style = choose(rng, (csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL))
  csv.writer(
    file, quoting=style, lineterminator=choose(rng, ('\n', '\n', '\r\n', '\r'))
  ).writerows(rows)
  return encode(file.getvalue())


def npy_header(rng, data: bytes) -> bytes:
  """Changes the header of a .npy file, or what follows it."""
  if not rng.integers(4) or len(data) < 12 or data[:6] != b'\x93NUMPY':
    return random_bytes(rng, data)
  length = struct.unpack_from('<H', data, 8)[0]
  header, body = data[10 : 10 + length].decode('latin-1'), data[10 + length :]
  version, padded = b'\x01\x00', True
  kind = int(rng.integers(10))
  if kind < 2:
    dtype = choose(
      rng,
      ['|O', '<f8', '>i2', '<f2', '<c16', '|S8', '<U4', '<M8[s]', '|b1', '<i4']
      + ['|V1000000', '<f16', '<U999999999', "('<i2', (9,))", '', '<f4'],
    )
    header = re.sub(r"'descr': [^,]+", f"'descr': '{dtype}'", header)
  elif kind < 5:
    shape = choose(
      rng,
      ['()', '(-1,)', '(2,)', '(0, 0, 0)', '(8, 8)', '(8, 8, 8, 1)', 'None']
      + ['(1.5, 2, 3)', '(True, 8, 8)', "('8', 8, 8)", '(9223372036854775807,)']
      + ['(4294967296, 4294967296, 1)', '(18446744073709551616, 1, 1)', '8']
      + ['(2147483648, 1, 1)', '(0, 99999999999, 9)', '(' + '1,' * 40 + ')']
      + ['(-8, -8, 8)', '(0, 64, 64, 32)', '(8, 8, 8)', '[8, 8, 8]'],
    )
    header = re.sub(r"'shape': \([^)]*\)", f"'shape': {shape}", header)
  elif kind == 5:
    header = header.replace('False', choose(rng, ('True', '1', "'x'", '{}')))
  elif kind == 6:
    header = text_tokens(rng, header.encode()).decode('utf-8', 'replace')
  elif kind == 7:
    header = '{' * choose(rng, (9, 900, 9000)) + header
  elif kind == 8:
    version, padded = bytes([int(rng.integers(5)), 0]), False
  else:
    header = re.sub(r"'descr': [^,]+", "'descr': '|O'", header)
    body = pickle.dumps(np.array([MakeCanary()] * 4, object), 4)
  if padded:
    header = header.rstrip() + ' ' * (-(len(header.rstrip()) + 11) % 64) + '\n'
  encoded = header.encode('latin-1', 'replace')[:65_000]
  return (
    b'\x93NUMPY' + version + struct.pack('<H', len(encoded)) + encoded + body
  )


def zip_members(
  rng, data: bytes, damage: Callable[..., bytes] = random_bytes
) -> bytes:
  """Changes an archive: a member's data or name, the list of them, its bytes.

  Args:
    rng: decides.
    data: the archive.
    damage: called with `rng`, the data and the name of a member.
  """
  if not rng.integers(5):
    return random_bytes(rng, data)
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      members = [(one, archive.read(one)) for one in archive.infolist()]
  except Exception:  # zipfile raises many kinds for what was damaged before
    return random_bytes(rng, data)
  at = int(rng.integers(len(members)))
  info, content = members[at]
  kind = int(rng.integers(8))
  if kind == 0:
    del members[at]
  elif kind == 1:
    members.append(members[at])
  elif kind == 2:
    info.filename = choose(
      rng,
      (OUTSIDE, f'/{info.filename}', f'a/{info.filename}', value_text(rng))
      + (f'{info.filename}\\..', '..', 'C:x.mhd', 'x' * 200 + '.mhd'),
    )[:60_000]
  elif kind == 3:
    info.external_attr = choose(rng, (0o120777, 0o010644, 0o40755)) << 16
  elif kind == 4:
    members += [(zipfile.ZipInfo(f'{number}.txt'), b'') for number in range(20)]
  else:
    members[at] = (info, damage(rng, content, info.filename))
  file = io.BytesIO()
  method = choose(
    rng, (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2)
  )
  with zipfile.ZipFile(file, 'w', method) as archive:
    for one, content in members:
      try:
        # Keeps its method, as torch wants it, more often than not.
        archive.writestr(one, content, method if kind == 4 else None)
      except (ValueError, UnicodeError, struct.error):
        archive.writestr('x', content)
  return file.getvalue()


def any_file(rng, files: Mapping[str, bytes], how) -> Files:
  """Returns files of which one is damaged.

  Args:
    rng: decides.
    files: content by name.
    how: function by suffix of the name; that of '' takes all others, and each
      as often as bytes are damaged blindly.
  """
  name = choose(rng, sorted(files))
  suffix = max((one for one in how if name.endswith(one)), key=len)
  damage = how[suffix] if rng.integers(4) else random_bytes
  return {**files, name: damage(rng, files[name])}


def drop_or_swap(rng, files: Mapping[str, bytes]) -> Files:
  """Returns files of which one is missing, empty or a copy of another."""
  changed = dict(files)
  name, other = (choose(rng, sorted(files)) for _ in range(2))
  kind = int(rng.integers(3))
  if kind == 0 and len(files) > 1:
    del changed[name]
  else:
    changed[name] = b'' if kind < 2 else files[other]
  return changed
