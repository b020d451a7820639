"""The error of a scan that cannot be used."""

import re

from transvw_tf2 import errors

# What SimpleITK raises at bad input, beside what it prints.
ITK_ERRORS = (RuntimeError, MemoryError, UnicodeError)


class ScanError(Exception):
  """A scan cannot be used.

  Attributes:
    reason: a stable word, such as `missing_raw` or `truncated`.
    detail: what was found, in which file, and what was expected.
  """

  def __init__(self, reason: str, detail: str):
    detail = errors.one_line(detail)
    super().__init__(reason, detail)
    self.reason = reason
    self.detail = detail

  def __str__(self) -> str:
    return f'{self.reason}: {self.detail}'


def unreadable(path: str, error: Exception) -> ScanError:
  """Returns a ScanError with the telling line of what a library raised."""
  # ITK's "Reason:" is whatever the C library failed at last, often long ago.
  lines = [
    line.strip()
    for line in str(error).splitlines()
    if line.strip() and not line.startswith('Reason:')
  ]
  # Addresses in memory differ from run to run.
  text = re.sub(r'\w+\(0x[0-9a-f]+\): ', '', lines[-1] if lines else '')
  text = text.removeprefix('ITK ERROR: ').removeprefix('sitk::ERROR: ')
  return ScanError(
    'unreadable', f'{path} cannot be read: {text or type(error).__name__}'
  )
