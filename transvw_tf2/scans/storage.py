"""Scans on this machine and in object stores, such as s3://bucket/LUNA16.

What begins like s3:// is an address. It is opened through fsspec, which takes
credentials from the environment as the tools of the store do.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import posixpath
import re
import tempfile
from typing import TextIO

import fsspec

from transvw_tf2 import errors
from transvw_tf2.scans import errors as scan_errors
from transvw_tf2.scans import headers
from transvw_tf2.scans import npy_file

# At the beginning alone: a local file may have any name, given by a stranger.
_ADDRESS = re.compile(r'[a-z][a-z0-9+.-]*://')


class StorageError(errors.UserError):
  """A store does not answer, or not this user; no scan is to blame."""


def is_remote(path: str) -> bool:
  """Returns whether a path is an address in an object store."""
  return bool(_ADDRESS.match(path))


def absolute(path: str) -> str:
  """Returns a path that a worker in another working directory finds too."""
  return path if is_remote(path) else os.path.abspath(path)


def is_folder(path: str) -> bool:
  """Returns whether there is such a folder; raises StorageError."""
  if not is_remote(path):
    return os.path.isdir(path)
  return _type(path) == 'directory'


def is_file(path: str) -> bool:
  """Returns whether there is such a file; raises StorageError."""
  if not is_remote(path):
    return os.path.isfile(path)
  return _type(path) == 'file'


def exists(path: str) -> bool:
  """Returns whether there is such a file or folder; raises StorageError."""
  return bool(_type(path)) if is_remote(path) else os.path.exists(path)


def list_folder(folder: str) -> list[tuple[str, bool]]:
  """Returns the names in a folder, sorted, and whether each is a folder.

  Raises:
    OSError: a local folder cannot be listed.
    StorageError: an address cannot.
  """
  if not is_remote(folder):
    with os.scandir(folder) as entries:
      return sorted((one.name, one.is_dir()) for one in entries)
  with _open(folder) as (system, root):
    entries = system.ls(root, detail=True)
  return sorted(
    (name, one['type'] == 'directory')
    for one in entries
    if (name := _name(one['name']))
    and one['name'].strip('/') != root.strip('/')
  )


@contextlib.contextmanager
def open_text(path: str) -> Iterator[TextIO]:
  """Opens a small file of UTF-8 text, with its line ends as they are.

  Raises:
    OSError: a local file cannot be opened.
    StorageError: an address cannot.
  """
  with (
    staged(path) as local,
    open(local, newline='', encoding='utf-8-sig') as file,
  ):
    yield file


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
  """Gives a local path of a scan; a copy is removed when it is left.

  A local scan is not copied. Of a remote one all that it consists of is: the
  data file that a header names, the .json of a .npy file, the files of a
  folder. Errors within name the address, not the copy.

  Args:
    path: what `reader.read_scan` takes.

  Raises:
    ScanError: there is no such scan.
    StorageError: it cannot be copied.
  """
  if not is_remote(path):
    yield path
    return
  path = path.rstrip('/')
  parent = posixpath.dirname(path)
  with tempfile.TemporaryDirectory(prefix='transvw_scan_') as folder:
    local = os.path.join(folder, _name(path))
    with _open(path) as (system, root):
      _fetch(system, path, root, local)
    try:
      yield local
    except scan_errors.ScanError as error:
      raise scan_errors.ScanError(
        error.reason, error.detail.replace(folder, parent)
      ) from error


def _name(path: str) -> str:
  """Returns the last part, '' for one that would lead elsewhere."""
  name = posixpath.basename(path.rstrip('/'))
  return '' if name in ('.', '..') else name


def _fetch(system, path: str, root: str, local: str) -> None:
  try:
    found = system.info(root)
  except FileNotFoundError as error:
    raise scan_errors.ScanError(
      'missing_file', f'{path} does not exist'
    ) from error
  if found['type'] == 'directory':
    os.mkdir(local)
    names = [
      one['name']
      for one in system.ls(root, detail=True)
      if one['type'] == 'file' and _name(one['name'])
    ]
    # All at once: a series is hundreds of small files.
    system.get(names, [os.path.join(local, _name(one)) for one in names])
    return
  _fetch_file(system, root, local, found['size'])
  if name := _file_beside(local):
    beside = os.path.join(os.path.dirname(local), name)
    os.makedirs(os.path.dirname(beside), exist_ok=True)
    root = posixpath.join(posixpath.dirname(root), name)
    # What is missing is for the reader to say.
    with contextlib.suppress(FileNotFoundError):
      _fetch_file(system, root, beside, system.info(root)['size'])


def _file_beside(local: str) -> str | None:
  """Returns the name of the other file of a scan, if it has one."""
  if local.endswith(npy_file.SUFFIX):
    return os.path.basename(npy_file.spacing_path(local))
  return headers.data_file_name(local)


def _fetch_file(system, root: str, local: str, size: int) -> None:
  system.get_file(root, local)
  if os.path.getsize(local) != size:
    raise OSError(f'{os.path.getsize(local)} of {size} bytes came')


def _type(path: str) -> str:
  """Returns 'file', 'directory' or ''."""
  with _open(path) as (system, root):
    try:
      return system.info(root)['type']
    except FileNotFoundError:
      return ''


@contextlib.contextmanager
def _open(path: str):
  """Gives (file system, path in it); what goes wrong is one line."""
  try:
    # Listings are not kept: what is there may change.
    yield fsspec.core.url_to_fs(path, use_listings_cache=False)
  except (errors.UserError, scan_errors.ScanError):
    raise
  except ImportError as error:
    raise StorageError(
      f'{path} cannot be read: {_text(error)}; for s3:// run pip install'
      " '.[s3]'"
    ) from error
  # Stores have exceptions of their own that are no OSError.
  except Exception as error:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      raise StorageError(
        f'{path} cannot be copied to {tempfile.gettempdir()}'
        f' ({_text(error)}): make room, or set TMPDIR to another disk'
      ) from error
    raise StorageError(
      f'{path} cannot be read ({type(error).__name__}: {_text(error)}); check'
      ' the address, its credentials and the network'
    ) from error


def _text(error: Exception) -> str:
  return ' '.join(str(error).split())
