"""The memory of a process and of all that it started."""

import contextlib

import psutil


def resident_bytes(root: psutil.Process) -> int:
  """Returns the resident memory of a process and all below it, bytes.

  What they share counts once for each; 0 when the process has ended.
  """
  total = 0
  # A process may end at any time.
  with contextlib.suppress(psutil.NoSuchProcess):
    for process in [root, *root.children(recursive=True)]:
      with contextlib.suppress(psutil.NoSuchProcess):
        total += process.memory_info().rss
  return total
