"""Arrays of an HDF5 file from a stranger, looked at before they are read."""

import math

import h5py

from transvw_tf2 import errors
from transvw_tf2 import file_size

_MAX_OBJECTS = 100_000


def find(file: h5py.File, path: str) -> dict[str, h5py.Dataset]:
  """Returns all arrays of a file by name; nothing outside of it is opened.

  Args:
    file: open to read.
    path: that users know it by.

  Raises:
    errors.UserError: something leads out of the file, or it declares more than
      it can hold.
  """
  found, seen, groups, declared = {}, set(), [file], 0
  while groups:
    group = groups.pop()
    for name in group:
      where = f'{group.name.rstrip("/")}/{name}'
      link = group.get(name, getlink=True)
      if not isinstance(link, h5py.HardLink):
        raise errors.UserError(
          f'{path} has a {type(link).__name__} at {where}, wanted only arrays'
          ' that lie in the file itself: it is not safe to read'
        )
      item = group[name]
      address = h5py.h5o.get_info(item.id).addr
      if address in seen or len(seen) > _MAX_OBJECTS:
        raise errors.UserError(
          f'{path} has {where} twice or too much in it: it is not safe to read'
        )
      seen.add(address)
      if isinstance(item, h5py.Group):
        groups.append(item)
      elif isinstance(item, h5py.Dataset):
        if item.is_virtual or item.external:
          raise errors.UserError(
            f'{path} keeps {where} in another file, wanted only arrays that lie'
            ' in the file itself: it is not safe to read'
          )
        # Not item.size, which overflows. Chunks are read whole.
        numbers = max(
          math.prod(item.shape or (0,)), math.prod(item.chunks or (0,))
        )
        declared += numbers * item.dtype.itemsize
        file_size.check(path, declared)
        found[item.name] = item
  return found


def check_unpacked(dataset: h5py.Dataset, path: str) -> None:
  """Checks that an array takes no more memory than it declares.

  Raises:
    errors.UserError: it is packed: a filter may unpack a chunk to any size,
      whatever that of the chunk is.
  """
  if dataset.id.get_create_plist().get_nfilters():
    raise errors.UserError(
      f'{path} has {dataset.name} packed, which Keras never does and is not'
      ' safe to read: unpack it (h5repack -f NONE)'
    )
