"""Whether a file can hold what it declares, asked before it is read."""

import os

from transvw_tf2 import errors

# Trained weights, and descriptors, hardly shrink when they are packed.
_MOST_PACKED = 4


def check(path: str, declared: int) -> None:
  """Checks a size that a file declares.

  Args:
    path: the file.
    declared: bytes that would have to be allocated.

  Raises:
    errors.UserError: that is far more than the file has.
  """
  size = os.path.getsize(path)
  if declared > _MOST_PACKED * size:
    raise errors.UserError(
      f'{path} declares {declared} bytes of numbers but has {size} bytes: it is'
      ' damaged or not safe to read'
    )
