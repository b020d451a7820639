"""How much of the disk a scan takes, without reading its voxels."""

import os

from transvw_tf2.scans import headers


def count(path: str) -> int:
  """Returns the bytes of a scan: its file, data file beside it, or folder.

  0 for what is not there, or not on this machine.

  Args:
    path: what `reader.read_scan` takes.
  """
  path = os.fspath(path)
  try:
    if os.path.isdir(path):
      with os.scandir(path) as entries:
        return sum(one.stat().st_size for one in entries if one.is_file())
    size = os.path.getsize(path)
  except OSError:
    return 0
  try:
    if name := headers.data_file_name(path):
      size += os.path.getsize(os.path.join(os.path.dirname(path), name))
  except OSError:
    pass  # the header alone
  return size
