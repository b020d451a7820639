"""Converts weights between the official files and ours.

Command:
  python -m transvw_tf2.convert --input official.h5 --output F.keras

--input is an official .h5 (TransVW, Models Genesis, the stages), a .pt of the
PyTorch release, a .keras file or the folder of a run. --output is .keras, which
`train.start_from` takes, .h5 as Keras 2.2.4 reads it, or .pt. Prints what
became of every tensor. Nothing is written unless the input is whole.
Cost: a few seconds.
"""

import os

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_file
from transvw_tf2.convert import files
from transvw_tf2.convert import report

_INPUT = flags.DEFINE_string('input', None, 'Weights to read.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'File to write.', required=True)
_FORMAT = flags.DEFINE_enum(
  'format', None, files.FORMATS, 'Of --output; by default as its name says.'
)
_ALLOW_MISSING = flags.DEFINE_list(
  'allow_missing',
  [],
  'Parts that may be missing or not whole: head, decoder. The output is then'
  ' without them.',
)
_REPORT = flags.DEFINE_string(
  'report', None, 'File to write what became of every tensor to, .csv.'
)


def main(argv):
  del argv
  if _REPORT.value:
    _check_report(_REPORT.value)
  conversion = files.convert(
    _INPUT.value, _OUTPUT.value, _FORMAT.value, _ALLOW_MISSING.value
  )
  if _REPORT.value:
    report.write_csv(_REPORT.value, conversion.rows)
  print(report.as_table(conversion.rows))
  for note in conversion.notes:
    print(note)
  loaded = sum(row.state == report.LOADED for row in conversion.rows)
  left_out = len(conversion.rows) - loaded
  print(f'wrote {_OUTPUT.value}: {loaded} tensors, {left_out} left out')


def _check_report(path):
  """Checks that the report takes the place of neither file."""
  for flag in (_INPUT, _OUTPUT):
    if os.path.realpath(path) == os.path.realpath(flag.value):
      raise errors.UserError(
        f'--report {path} is the --{flag.name}: give another name'
      )
  output_file.check_place(path)


if __name__ == '__main__':
  mains.run(main)
