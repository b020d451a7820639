"""Exports the encoder of a training run as a SavedModel.

That of pre-training takes cubes, that of an autoencoder thumbnails of whole
scans; transvw_model.json in the folder says which.

Command:
  python -m transvw_tf2.export --workdir W --output DIR
"""

from absl import app
from absl import flags

from transvw_tf2 import mains
from transvw_tf2.serving import export

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder that transvw_tf2.train wrote.', required=True
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to write the SavedModel to.', required=True
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'latest'], 'Which weights to export.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Whether a model in --output is replaced.'
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}, wanted only flags')
  export.export_workdir(
    _WORKDIR.value, _OUTPUT.value, _CHECKPOINT.value, _OVERWRITE.value
  )
  print(f'wrote {_OUTPUT.value}: {_CHECKPOINT.value} of {_WORKDIR.value}')


if __name__ == '__main__':
  mains.run(main)
