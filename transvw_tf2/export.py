"""Exports the network of a training run, or of a file, as a SavedModel.

Of pre-training that is the encoder, with --whole decoder and head too; of
fine-tuning the whole network. An autoencoder takes thumbnails of whole scans,
all others cubes; transvw_model.json in the folder describes it all.

Command:
  python -m transvw_tf2.export --workdir W --output DIR
  python -m transvw_tf2.export --workdir W --output DIR --whole
  python -m transvw_tf2.export --workdir OFFICIAL.keras --output DIR
"""

from collections.abc import Sequence

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2.serving import export

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder that transvw_tf2.train wrote, or a .keras file of'
  ' transvw_tf2.convert.',
  required=True,
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder to write the SavedModel to.', required=True
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'latest'], 'Which weights of a run.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Whether a model in --output is replaced.'
)
_WHOLE = flags.DEFINE_bool(
  'whole',
  False,
  'Whether to export decoder and head too, as far as the network has them:'
  ' signatures restore and classify_word.',
)
_PRECISION = flags.DEFINE_enum(
  'precision',
  None,
  export.PRECISIONS,
  'What the model computes in; float32 if not given, also after a training in'
  ' another. With random weights embeddings in bfloat16 differed by up to 0.3 %'
  ' of the largest number, at a cosine above 0.9999.',
)
_POOLING_GRID = flags.DEFINE_list(
  'pooling_grid',
  ['1', '1', '1'],
  'Equal parts of a cube along x,y,z over each of which the last features are'
  ' averaged. With 2,2,2 an embedding is eight times as long and tells where in'
  ' the cube something is, so that similar places are found more exactly.',
)


def _parse_grid(values: Sequence[str]) -> tuple[int, ...]:
  try:
    grid = tuple(int(value) for value in values)
  except ValueError:
    grid = ()
  if len(grid) != 3:
    raise errors.UserError(
      f'--pooling_grid is {",".join(values)!r}, wanted three integers such as'
      ' 2,2,2'
    )
  return grid


def main(argv):
  del argv
  export.export_workdir(
    _WORKDIR.value,
    _OUTPUT.value,
    _CHECKPOINT.value,
    _OVERWRITE.value,
    _WHOLE.value,
    _PRECISION.value,
    _parse_grid(_POOLING_GRID.value),
  )
  print(f'wrote {_OUTPUT.value}, of {_WORKDIR.value}')


if __name__ == '__main__':
  mains.run(main)
