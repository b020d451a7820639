"""Folders of files in memory, and the damage that all readers share."""

from collections.abc import Callable
from collections.abc import Mapping
import os
import tempfile

from tests.fuzz import mutations


def load(folder: str) -> mutations.Files:
  """Returns all files at or below a folder, by path within it."""
  found = {}
  for at, _, names in sorted(os.walk(folder)):
    for name in sorted(names):
      path = os.path.join(at, name)
      with open(path, 'rb') as file:
        found[os.path.relpath(path, folder)] = file.read()
  return found


def seeds_of(write: Callable[..., object], *variants: Mapping):
  """Returns what gives the files that `write` leaves in a folder.

  Args:
    write: called with the folder, and with each of the variants.
    *variants: keyword arguments; none is one variant.
  """

  def seeds(fixtures):
    found = []
    for variant in variants or ({},):
      with tempfile.TemporaryDirectory(dir=fixtures) as folder:
        write(folder, **variant)
        found.append(load(folder))
    return found

  return seeds


def mutate_with(how: Mapping[str, Callable[..., bytes]]):
  """Returns what damages one or two files, or mixes them up.

  Args:
    how: damage by suffix of the name, '' for all others.
  """

  def mutate(rng, files):
    if not rng.integers(20):
      return mutations.drop_or_swap(rng, files)
    for _ in range(int(rng.integers(1, 3))):
      files = mutations.any_file(rng, files, how)
    return files

  return mutate
