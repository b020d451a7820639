"""Serves an exported model: REST (V1, V2), gRPC and whole scans, on KServe.

Command:
  pip install '.[serve]'
  python -m transvw_tf2.serve --model DIR --port 8501

Listens on this machine alone unless --host says otherwise, without TLS: put a
proxy before it where others can listen in. SIGTERM lets requests finish.
Cost: about 0.2 s a cube on 2 CPU cores.
"""

import dataclasses
import os
import sys

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2.serving.server import settings

_DEFINE = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
}
_FLAGS = {
  field.name: _DEFINE[field.type](
    field.name, field.default, field.metadata['help']
  )
  for field in dataclasses.fields(settings.Settings)
}
flags.mark_flag_as_required('model')


def main(argv):
  del argv
  values = {name: flag.value for name, flag in _FLAGS.items()}
  if values['api_key'] is None:
    values['api_key'] = os.environ.get('TRANSVW_API_KEY')
  chosen = settings.Settings(**values)  # wrong ones end here, in no time
  _import_run().serve(chosen)


def _import_run():
  # KServe parses the flags of the process when it is imported.
  arguments, sys.argv = sys.argv, sys.argv[:1]
  try:
    from transvw_tf2.serving.server import run
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f'{error.name} is not installed, which the server needs: pip install '
      "'.[serve]'"
    ) from error
  finally:
    sys.argv = arguments
  return run


if __name__ == '__main__':
  mains.run(main)
