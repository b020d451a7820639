"""Keeps two runs from writing to one folder at the same time.

The lock is that of the kernel on the folder itself (flock): it leaves no file,
and goes with the process that holds it, however that ends. So what lies in a
folder that can be locked is of no run that still goes on.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import shutil

from transvw_tf2 import errors


@contextlib.contextmanager
def hold(folder: str, output: str | None = None) -> Iterator[None]:
  """Holds the lock of a folder; makes the folder where there is none.

  Where a folder cannot be locked (a bucket, some network file systems, no
  permission) nothing is held, and whoever writes there finds out why.

  Args:
    folder: the folder.
    output: what the user calls it, for the message.

  Raises:
    UserError: another run holds it.
  """
  descriptor = _lock(folder, output or folder)
  try:
    yield
  finally:
    if descriptor is not None:
      os.close(descriptor)


def _lock(folder: str, output: str) -> int | None:
  while True:
    try:
      os.makedirs(folder, exist_ok=True)
      descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
      return None
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
        return descriptor
    except BlockingIOError as error:
      os.close(descriptor)
      raise errors.UserError(
        f'another run is writing to {output}: wait until it has ended, or give'
        ' another folder'
      ) from error
    except FileNotFoundError:
      pass
    except OSError:
      os.close(descriptor)
      return None
    # It was renamed or removed between the two calls: by a run that ended.
    os.close(descriptor)


@contextlib.contextmanager
def making(output: str, name: str = '') -> Iterator[str]:
  """Gives an empty folder, which becomes `output` when all went well.

  What a killed run left of its own is removed.

  Args:
    output: folder or file to make.
    name: of the file in the folder that becomes `output`, the folder without.

  Raises:
    UserError: `output` exists, another run is making it, or it cannot be
      written.
  """
  what = 'file' if name else 'folder'
  output = output.rstrip(os.sep) or os.sep
  check_new(output, what)
  temporary = f'{output}.incomplete'
  try:
    with hold(temporary, output):
      try:
        check_new(output, what)  # another run may just have finished it
        _empty(temporary)
        # A worker may have another working directory.
        yield os.path.abspath(temporary)
        os.rename(os.path.join(temporary, name).rstrip(os.sep), output)
      finally:
        shutil.rmtree(temporary, ignore_errors=True)
  except OSError as error:
    raise errors.UserError(
      f'--output {output} cannot be written ({error}): make room or give a'
      ' folder in a writable place'
    ) from error


def check_new(output: str, what: str) -> None:
  """Raises UserError where an output, a `what` to be made, exists."""
  # A link to nowhere too: nothing could take its name when all is done.
  if os.path.lexists(output):
    raise errors.UserError(
      f'--output {output} exists; give another {what}, or remove it'
    )


def _empty(folder: str) -> None:
  os.makedirs(folder, exist_ok=True)
  for entry in os.scandir(folder):
    if entry.is_dir(follow_symlinks=False):
      shutil.rmtree(entry.path)
    else:
      os.remove(entry.path)
