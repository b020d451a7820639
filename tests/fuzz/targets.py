"""What is fuzzed: a reader, valid files for it, and how they are damaged."""

from collections.abc import Callable
import dataclasses
import types

from tests.fuzz import mutations


@dataclasses.dataclass(frozen=True)
class Target:
  """A reader or importer.

  Attributes:
    name: for the command line and the table; with the seed it decides the
      cases.
    seeds: returns valid inputs, files by name; called with a folder that stays,
      beside the one of each case, as `../fixtures`.
    mutate: damages one of them, see `mutations`.
    read: reads the files of a folder.
    errors: what it may raise, as its docstring says.
    modules: of which the lines are counted that ran.
    leaves_out: functions and classes there that read nothing.
    heavy: whether it needs TensorFlow, which takes seconds to import.
  """

  name: str
  seeds: Callable[[str], list[mutations.Files]]
  mutate: Callable[..., mutations.Files]
  read: Callable[[str], object]
  errors: tuple[type[Exception], ...]
  modules: tuple[types.ModuleType, ...]
  leaves_out: frozenset[str] = frozenset()
  heavy: bool = False
