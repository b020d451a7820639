"""Reads gin files and parameters; what is wrong in them becomes one line.

A gin file is code that configures this program: use only files you trust.
"""

import ast
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import logging
import os
import re
import sys

import gin

from transvw_tf2 import errors

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Where `gin/...` is looked up: the working directory, then what pip installed,
# then the source tree of an editable installation.
SEARCH_PATHS = (
  '',
  os.path.join(sys.prefix, 'share', 'transvw_tf2'),
  os.path.dirname(_PACKAGE),
)

# What gin and Python raise for a file or a binding that is wrong; the last for
# a file that includes itself.
_WRONG = (
  *(AttributeError, ImportError, OSError, SyntaxError, TypeError, ValueError),
  RecursionError,
)


def parse(
  files: Sequence[str],
  parameters: Sequence[str] = (),
  forget: bool = False,
) -> None:
  """Parses gin files, then single bindings that override them.

  Args:
    files: paths, looked up in `SEARCH_PATHS`, as their includes are.
    parameters: bindings such as 'train.batch_size = 16'.
    forget: whether all that was parsed before is forgotten.

  Raises:
    UserError: a file does not exist, or names something unknown.
  """
  for name in files:
    if not any(os.path.isfile(os.path.join(at, name)) for at in SEARCH_PATHS):
      raise errors.UserError(
        f'gin file {name} does not exist in the working directory nor in'
        f' {SEARCH_PATHS[1]}; the published runs are gin/runs/*.gin'
      )
  if forget:
    gin.clear_config()
  for path in SEARCH_PATHS[1:]:
    gin.add_config_file_search_path(path)
  try:
    with _quiet_search():
      gin.parse_config_files_and_bindings(list(files), list(parameters))
  except _WRONG as error:
    given = ', '.join([*files, *parameters])
    # With an address in memory, from Python's parser.
    problem = re.sub(r'^malformed node .* at 0x\w+>\s*', '', str(error))
    raise errors.UserError(
      f'gin, in {given}: {problem}{_next_step(problem, parameters)}'
    ) from error


def forget() -> None:
  """Forgets all that was parsed; what is parsed next begins anew."""
  gin.clear_config()


def find_unused(parameters: Sequence[str]) -> list[str]:
  """Returns the bindings that nothing has asked for yet.

  Args:
    parameters: as `parse` takes them. Macros are passed over.
  """
  asked = set(
    re.findall(
      r'^(?:\S+/)?(?:\w+\.)*(\w+\.\w+) =', gin.operative_config_str(), re.M
    )
  )
  unused = []
  for parameter in parameters:
    # Without scopes; of several lines, an include or a comment too.
    names = re.findall(r'^\s*(?:[\w.]+/)*([\w.]+)\s*=', parameter, re.M)
    short = {'.'.join(one.split('.')[-2:]) for one in names if '.' in one}
    if short - {'macro.value'} - asked:
      unused.append(parameter)
  return unused


@contextlib.contextmanager
def _quiet_search() -> Iterator[None]:
  """Keeps gin from logging an error for each place that lacks a file.

  What is nowhere is an exception too.
  """

  def is_shown(record) -> bool:
    return os.path.basename(record.pathname) != 'resource_reader.py'

  root = logging.getLogger()  # where gin logs
  root.addFilter(is_shown)
  try:
    yield
  finally:
    root.removeFilter(is_shown)


def _next_step(problem: str, parameters: Sequence[str]) -> str:
  """Returns what to do about an error of gin; '' where that is not known."""
  if missing := re.match(r'(\S+) set to `%gin.REQUIRED`', problem):
    value = '"RUN"' if missing[1] == 'train.start_from' else '...'
    return f" Add --gin_param '{missing[1]} = {value}'."
  for parameter in parameters:
    name, _, value = (part.strip() for part in parameter.partition('='))
    if _is_bare_text(value):
      return f'; text needs quotes: \'{name} = "{value}"\''
  return ''


def _is_bare_text(value: str) -> bool:
  if not value or value[0] in '@%\'"([{':
    return False
  try:
    ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return True
  return False
