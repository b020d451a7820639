r"""Perturbing cubes on one CPU core: ours against the published procedure.

  python tools/benchmark.py perturb
  python tools/benchmark.py perturb --seconds 3 --repeats 9

Cubes of 64 x 64 x 32 voxels that are in memory, published settings. The lines
`perturb` are cubes per second of

- published: the published procedure in NumPy and SciPy, cube by cube;
- ours: the layer on batches, compiled alone by XLA;
- ours_batch_1, ours_batch_16: the same with other batches;
- ours_in_tf_data: the compiled layer inside Dataset.map, over batches;
- ours_uncompiled, ours_uncompiled_in_tf_data: both without XLA;
- ours_pytorch: the compiled layer in PyTorch's variant, against the published
  procedure in that variant.

The lines `perturb_elastic` are elastic deformation alone, drawing it included:
ours, and others that are compared with the fastest of them: SciPy,
batchgenerators, TorchIO and MONAI (`pip install batchgenerators torchio monai`;
what is missing is left out).

Each library is a process of its own; all are bound to the same core and have
one thread, and only one of them works at a time, in turn. Takes about 4
minutes.
"""

import collections
from collections.abc import Iterator
import contextlib
import importlib.util
import os
import statistics
import sys

from absl import flags
import side_process

from transvw_tf2 import errors

_BATCH = flags.DEFINE_integer('batch', 8, 'Cubes per batch.', lower_bound=1)
_REPEATS = flags.DEFINE_integer(
  'repeats', 7, 'Runs of each side; the median counts.', lower_bound=1
)
_SECONDS = flags.DEFINE_float(
  'seconds', 1.5, 'Length of a run.', lower_bound=0.001
)
_CORE = flags.DEFINE_integer(
  'core', None, 'Core that all are bound to; the last one if not given.'
)

_SCRIPT = os.path.join(
  os.path.dirname(os.path.abspath(__file__)), 'perturb_sides.py'
)
_PUBLISHED = 'published'
_OURS = (
  'ours',
  'ours_batch_1',
  'ours_batch_16',
  'ours_in_tf_data',
  'ours_uncompiled',
  'ours_uncompiled_in_tf_data',
)
_PYTORCH = 'ours_pytorch'
_PUBLISHED_PYTORCH = 'published_pytorch'
_ELASTIC = 'elastic'
# Libraries that need not be installed.
_PEERS = ('batchgenerators', 'torchio', 'monai')


def perturb() -> Iterator[tuple]:
  """Yields the lines of `perturb`."""
  processes = {
    'scipy': (_PUBLISHED, _PUBLISHED_PYTORCH, f'{_ELASTIC}_scipy'),
    'ours': (*_OURS, _PYTORCH, _ELASTIC),
    **{name: (f'{_ELASTIC}_{name}',) for name in _find_peers()},
  }
  speeds = _measure(processes)
  for side in (_PUBLISHED, *_OURS):
    yield _line(speeds, side, _PUBLISHED)
  for side in (_PUBLISHED_PYTORCH, _PYTORCH):
    yield _line(speeds, side, _PUBLISHED_PYTORCH)
  others = [side for side in speeds if side.startswith(f'{_ELASTIC}_')]
  fastest = max(others, key=speeds.get)
  for side in (*others, _ELASTIC):
    yield _line(speeds, side, fastest)


def _line(speeds, side, baseline):
  ratio = None if side == baseline else speeds[side] / speeds[baseline]
  return (
    *(f'perturb_{side}', speeds[side], 'cubes/s'),
    *(ratio, None if ratio is None else f'perturb_{baseline}'),
  )


def _find_peers() -> list[str]:
  found = []
  for name in _PEERS:
    if importlib.util.find_spec(name):
      found.append(name)
    else:
      _tell(
        f'no {name}: perturb_{_ELASTIC}_{name} is left out; pip install {name}'
      )
  return found


def _measure(processes) -> dict[str, float]:
  """Measures all sides in turn.

  Args:
    processes: names of sides by name of their process.

  Returns:
    The median cubes per second of each side.
  """
  speeds = collections.defaultdict(list)
  with contextlib.ExitStack() as stack:
    sides = {}
    for name, names in processes.items():
      process = stack.enter_context(_Process(name))
      sides |= dict.fromkeys(names, process)
    for side, process in sides.items():
      process.run(side, 0.001)  # imports, compiles and warms up
    for _ in range(_REPEATS.value):
      for side, process in sides.items():
        speeds[side].append(process.run(side, _SECONDS.value))
  return {side: statistics.median(values) for side, values in speeds.items()}


def _tell(text):
  print(text, file=sys.stderr, flush=True)


class _Process(side_process.SideProcess):
  """A process of perturb_sides.py."""

  def __init__(self, name):
    cores = os.sched_getaffinity(0)
    core = max(cores) if _CORE.value is None else _CORE.value
    if core not in cores:
      raise errors.UserError(
        f'--core is {core}, wanted one of {", ".join(map(str, sorted(cores)))}'
      )
    settings = {'process': name, 'core': core, 'batch': _BATCH.value}
    super().__init__(name, _SCRIPT, settings)

  def run(self, side: str, seconds: float) -> float:
    """Returns the cubes per second of a side over so many seconds."""
    return self.ask(f'{side} {seconds}')
