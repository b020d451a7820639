r"""What `--deterministic` costs a training run.

  python tools/benchmark.py deterministic --data DATA

trains on a built data set with and without it, in turn, and compares cubes per
second over the epochs after the first, which also traces and compiles.
"""

from collections.abc import Iterator
import os
import statistics
import subprocess
import sys
import tempfile

from absl import flags

from transvw_tf2 import errors
from transvw_tf2.training import reports

_DATA = flags.DEFINE_string('data', None, 'Built data set.')
_GIN_FILE = flags.DEFINE_string(
  'gin_file', 'gin/runs/quickstart.gin', 'What is trained.'
)
_GIN_PARAM = flags.DEFINE_multi_string('gin_param', [], 'Bindings after it.')
_DEVICES = flags.DEFINE_string('devices', 'cpu', 'As of transvw_tf2.train.')
_EPOCHS = flags.DEFINE_integer(
  'epochs', 4, 'Of each run; the first does not count.', lower_bound=2
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 2, 'Runs with it and without it.', lower_bound=1
)
_SIDES = {'without': (), 'deterministic': ('--deterministic',)}


def deterministic() -> Iterator[tuple]:
  """Yields the lines of `deterministic`."""
  if not _DATA.value:
    raise errors.UserError('deterministic needs --data')
  speeds = {side: [] for side in _SIDES}
  for _ in range(_REPEATS.value):
    for side, arguments in _SIDES.items():
      speeds[side] += _train(*arguments)
  medians = {side: statistics.median(some) for side, some in speeds.items()}
  yield 'train_without', medians['without'], 'cubes/s', None, None
  ratio = medians['deterministic'] / medians['without']
  yield (
    *('train_deterministic', medians['deterministic'], 'cubes/s'),
    *(ratio, 'train_without'),
  )


def _train(*arguments) -> list[float]:
  """Trains in a process of its own; returns cubes/s of the later epochs."""
  parameters = [
    *_GIN_PARAM.value,
    f'train.epochs = {_EPOCHS.value}',
    'train.picture_epochs = 1000',
  ]
  with tempfile.TemporaryDirectory() as workdir:
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'transvw_tf2.train'),
        f'--gin_file={_GIN_FILE.value}',
        *(f'--gin_param={one}' for one in parameters),
        f'--data={os.path.abspath(_DATA.value)}',
        *(f'--workdir={workdir}', f'--devices={_DEVICES.value}'),
        *arguments,
      ],
      capture_output=True,
      text=True,
      check=False,
    )
    if done.returncode:
      raise errors.UserError(done.stderr.strip().splitlines()[-1])
    rows = reports.read_history(workdir)
  return [row['cubes_per_second'] for row in rows[1:]]
