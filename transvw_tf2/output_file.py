"""Writes a file under another name first, so that it is whole or not there."""

from collections.abc import Iterator
import contextlib
import os
import uuid

from transvw_tf2 import errors

_PATTERN_SIGNS = '*?[\\'


@contextlib.contextmanager
def replacing(path: str, suffix: str = '') -> Iterator[str]:
  """Gives a name to write to, which becomes `path` when all went well.

  Args:
    path: the file.
    suffix: end of the name given, for writers that go by it.

  Raises:
    errors.UserError: it cannot be written.
  """
  check_place(path)
  # Beside it, so that the rename stays within one file system.
  partial = f'{path}.partial-{uuid.uuid4().hex[:8]}{suffix}'
  try:
    yield partial
    os.replace(partial, path)
  except OSError as error:
    raise errors.UserError(
      f'{path} cannot be written ({error}): make room, or give another folder'
    ) from error
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(partial)


def check_place(path: str) -> None:
  """Checks that a file could be at `path`, before there is anything to write.

  Raises:
    errors.UserError: it is a folder, or in none that can be written to.
  """
  folder = os.path.dirname(os.path.abspath(path))
  if os.path.isdir(path) or not os.path.isdir(folder):
    raise errors.UserError(
      f'{path} cannot be written: wanted a file in a folder that exists'
    )
  if not os.access(folder, os.W_OK | os.X_OK):
    raise errors.UserError(
      f'{path} cannot be written: {folder} is not to be written to, give'
      ' another folder'
    )


def check_folder(path: str) -> None:
  """Checks that a folder is or could be made at `path`, and written to.

  Raises:
    errors.UserError: it is a file, or lies in no folder that can be written to.
  """
  there = os.path.abspath(path)
  while not os.path.lexists(there):
    there = os.path.dirname(there)
  if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
    raise errors.UserError(
      f'{path} cannot be written: {there} is no folder that can be written to,'
      ' give another'
    )


def check_no_pattern(flag: str, path: str) -> None:
  """Checks that TensorFlow and Beam take a path for no pattern.

  They would write there, and then not find what they wrote.

  Raises:
    errors.UserError: a sign in it makes it one.
  """
  if any(sign in os.path.abspath(path) for sign in _PATTERN_SIGNS):
    raise errors.UserError(
      f'{flag} {path} has one of {" ".join(_PATTERN_SIGNS)} in its path, which'
      ' TensorFlow and Beam take for a pattern: give another'
    )


def write(path: str, content: bytes | memoryview) -> None:
  """Writes a file that is whole or not there.

  Raises:
    errors.UserError: it cannot be written.
  """
  with replacing(path) as partial, open(partial, 'wb') as file:
    file.write(content)
