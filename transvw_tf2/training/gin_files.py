"""Reads gin files and parameters; what is wrong in them becomes one line.

A gin file is code that configures this program: use only files you trust.
"""

from collections.abc import Sequence
import importlib.util  # noqa: F401, gin 0.5 uses it without importing it
import os
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
    gin.parse_config_files_and_bindings(list(files), list(parameters))
  except (AttributeError, OSError, SyntaxError, TypeError, ValueError) as error:
    given = ', '.join([*files, *parameters])
    raise errors.UserError(f'gin, in {given}: {error}') from error
