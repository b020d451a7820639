r"""Measures what this project is built to do well, beside other ways to do it.

  python tools/benchmark.py cubes
  python tools/benchmark.py NAME --help

prints one line per figure: name, value, unit, ratio, what it is a ratio to.
Both sides of a ratio are measured in the same run, in turn.
"""

from collections.abc import Iterator
import importlib.util
import os
import sys
from types import ModuleType

from transvw_tf2 import errors
from transvw_tf2 import mains

# Each benchmark is a function of its own name in tools/benchmarks/FILE.py; it
# takes nothing, for its flags are defined there, and yields the five columns of
# a line.
_FILES = {
  'cubes': 'cubes',
  'cubes_memory': 'cubes',
  'cubes_ours': 'cubes',
  'deterministic': 'deterministic',
  'embed': 'embed',
  'embed_shared': 'embed_shared',
  'export_step': 'export_step',
  'input': 'input',
  'perturb': 'perturb',
  'scale': 'scale',
  'serve': 'serve',
  'train_step': 'train_step',
}
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'benchmarks')


def load(name: str) -> ModuleType:
  """Imports the file of a benchmark, which defines its flags.

  Raises:
    UserError: no benchmark has this name.
  """
  if name not in _FILES:
    raise errors.UserError(
      f'no benchmark {name!r}; known are {", ".join(sorted(_FILES))}'
    )
  # The file is loaded by path, so what lies beside it would not be found.
  if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)
  path = os.path.join(_FOLDER, f'{_FILES[name]}.py')
  spec = importlib.util.spec_from_file_location(f'benchmark_{name}', path)
  module = importlib.util.module_from_spec(spec)
  # As for any import; absl asks it whose flags these are.
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


def lines(name: str) -> Iterator[str]:
  """Runs a benchmark, whose file is loaded, and yields its lines."""
  for figure, value, unit, ratio, ratio_to in getattr(
    sys.modules[f'benchmark_{name}'], name
  )():
    columns = (figure, f'{value:.4g}', unit)
    if ratio is None:
      columns += ('-', '-')
    else:
      columns += (f'{ratio:.3g}', ratio_to)
    yield ', '.join(columns)


def main(argv):
  if len(argv) != 2:
    raise errors.UserError(
      f'wanted one name of a benchmark, got {" ".join(argv[1:]) or "none"};'
      f' known are {", ".join(sorted(_FILES))}'
    )
  # Only for a wrong name: the right one was loaded before flags were parsed.
  if f'benchmark_{argv[1]}' not in sys.modules:
    load(argv[1])
  for line in lines(argv[1]):
    print(line, flush=True)


if __name__ == '__main__':
  for _argument in sys.argv[1:]:
    if _argument in _FILES:
      load(_argument)
      break
  mains.run(main, positional=True)
