r"""Trains on a built data set, as gin files say.

Commands:
  python -m transvw_tf2.train --gin_file gin/runs/pretrain.gin \
      --data DATA --workdir W
  python -m transvw_tf2.train --gin_file gin/runs/pretrain.gin \
      --data DATA --workdir W --devices gpu:0,1 \
      --gin_param 'train.batch_size = 32'

The same command again goes on where it was cut off.
"""

from absl import app
from absl import flags

from transvw_tf2 import mains
from transvw_tf2.training import devices
from transvw_tf2.training import gin_files
from transvw_tf2.training import loop

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
  'devices', 'all', "'all', 'cpu', 'cpu:2', 'gpu' or 'gpu:0,1'."
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}, wanted only flags')
  data = [f'train.data_dir = {_DATA.value!r}'] if _DATA.value else []
  gin_files.parse(_GIN_FILE.value, [*_GIN_PARAM.value, *data])
  strategy = devices.make_strategy(_DEVICES.value)
  rows = loop.train(_WORKDIR.value, strategy, loop.Settings())
  print(f'{len(rows)} epochs in {_WORKDIR.value}')


if __name__ == '__main__':
  mains.run(main)
