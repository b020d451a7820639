"""Memory-maps .npy files, of which nothing is believed."""

import os
import struct

import numpy as np

# The versions of the format whose header has its length in four bytes.
_LONG_HEADERS = (b'\x93NUMPY\x02', b'\x93NUMPY\x03')


def open_array(path: str) -> np.ndarray:
  """Maps the array of a .npy file; never unpickles.

  Raises:
    OSError: the file cannot be opened.
    Exception: it is broken; NumPy parses the header as Python, and raises what
      the parser raises.
  """
  with open(path, 'rb') as file:
    start = file.read(12)
  # NumPy takes memory for a header of whatever length is claimed.
  if start.startswith(_LONG_HEADERS) and len(start) == 12:
    (length,) = struct.unpack('<I', start[8:])
    if length > os.path.getsize(path):
      raise ValueError(f'a header of {length} bytes is greater than file size')
  with np.errstate(over='ignore'):  # an absurd shape fails all the same
    return np.lib.format.open_memmap(path, mode='r')
