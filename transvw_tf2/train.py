r"""Trains on a built data set, as gin files say.

Commands:
  python -m transvw_tf2.train --gin_file gin/runs/pretrain.gin \
      --data DATA --workdir W
  python -m transvw_tf2.train --gin_file gin/runs/pretrain.gin \
      --data DATA --workdir W --devices gpu:0,1 \
      --gin_param 'train.batch_size = 32'

The same command again goes on where it was cut off. SIGTERM and Ctrl-C save
first; the exit code then is 75. With --deterministic the result is the same to
the last bit, whether and wherever it was cut off; but for the rounding of batch
norm's statistics after a SIGTERM, where replicas have their own.
"""

import os
import sys

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2.training import devices
from transvw_tf2.training import gin_files
from transvw_tf2.training import interruption
from transvw_tf2.training import loop
from transvw_tf2.training import settings

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', None, 'Gin files, such as gin/runs/pretrain.gin.', required=True
)
_GIN_PARAM = flags.DEFINE_multi_string(
  'gin_param', [], "Bindings after the files, such as 'train.batch_size = 16'."
)
_DATA = flags.DEFINE_string(
  'data', None, 'Built data set; the same as train.data_dir in gin.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run.', required=True
)
_DEVICES = flags.DEFINE_string(
  'devices',
  'all',
  "'all' (every GPU, or one CPU where there is none), 'cpu', 'cpu:2', 'gpu' or"
  " 'gpu:0,1'.",
)
_DETERMINISTIC = flags.DEFINE_bool(
  'deterministic',
  False,
  'Same bits in every run on one kind of machine. What it costs drowned in the'
  ' noise on CPU.',
)
_THREADS = flags.DEFINE_integer(
  'threads',
  None,
  'Threads of one operation with --deterministic, for they decide the bits'
  ' (default: the cores of this machine).',
  lower_bound=1,
)


def main(argv):
  del argv
  data = [f'train.data_dir = {_DATA.value!r}'] if _DATA.value else []
  gin_files.parse(_GIN_FILE.value, [*_GIN_PARAM.value, *data])
  if _THREADS.present and not _DETERMINISTIC.value:
    raise errors.UserError(
      '--threads is for runs with --deterministic: give both, or neither'
    )
  if _DETERMINISTIC.value:
    devices.make_deterministic(_THREADS.value or os.cpu_count())
  strategy = devices.make_strategy(_DEVICES.value)
  loop.say(f'training on {devices.describe(strategy)}')
  try:
    with interruption.Interruption() as interrupted:
      rows = loop.train(
        _WORKDIR.value,
        strategy,
        settings.Settings(),
        should_stop=lambda: interrupted.requested,
        parameters=_GIN_PARAM.value,
      )
  except interruption.Interrupted as stopped:
    print(stopped, file=sys.stderr)
    return interruption.EXIT_CODE
  if devices.is_chief(strategy):
    loop.say(f'{len(rows)} epochs in {_WORKDIR.value}')
  return 0


if __name__ == '__main__':
  mains.run(main)
