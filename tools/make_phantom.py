r"""Makes a folder of synthetic chest CT in the layout of LUNA16.

  python tools/make_phantom.py --out PHANTOM --scans 24 --size 192,192,128

takes about a second for a scan, and some seconds before the first. With
`--from SCAN` it bends one real scan (any format that is read) into the
patients instead; with `--nodules 1,4` they get nodules too, and with these lung
masks, annotations and candidates.
`transvw_tf2.scans.phantom.load_truth` tells where the anatomy truly lies.
"""

import dataclasses
import os
import shutil
import tempfile

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader

_OUT = flags.DEFINE_string('out', None, 'Folder to make.', required=True)
_SCANS = flags.DEFINE_integer('scans', 24, 'Number of patients.', lower_bound=1)
_SIZE = flags.DEFINE_list(
  'size',
  ['192', '192', '128'],
  'Voxels X,Y,Z. Z may be 0 with --slice_thickness: then the length of the'
  ' chest decides.',
)
_SEED = flags.DEFINE_integer('seed', 1, 'Decides every patient.', lower_bound=0)
_FROM = flags.DEFINE_string('from', None, 'Real scan to bend into patients.')
_NUMBERS = [
  flags.DEFINE_float('translation_sd', None, 'Of the position, mm.'),
  flags.DEFINE_float('rotation_sd', None, 'Of the pose, degrees.'),
  flags.DEFINE_float('displacement_sd', None, 'Of the bending, mm.'),
  flags.DEFINE_float(
    'attached', None, 'Share of the nodules that touch the pleura or a vessel.'
  ),
]
_RANGES = [
  flags.DEFINE_list('scale', None, 'Size of patients, LOWEST,HIGHEST.'),
  flags.DEFINE_list('field_of_view', None, 'In-plane, LOWEST,HIGHEST mm.'),
  flags.DEFINE_list('length', None, 'Along z, LOWEST,HIGHEST mm.'),
  flags.DEFINE_list('slice_thickness', None, 'LOWEST,HIGHEST mm.'),
  flags.DEFINE_list('noise', None, 'Sd of the noise, LOWEST,HIGHEST HU.'),
  flags.DEFINE_list('diameter', None, 'Of nodules, LOWEST,HIGHEST mm.'),
]
_DETECTED_CANDIDATES = flags.DEFINE_bool(
  'detected_candidates',
  False,
  "False candidates are what a blob detector finds, as LUNA16's; else vessels.",
)
_NODULES = flags.DEFINE_list(
  'nodules',
  None,
  'Number in a patient, LOWEST,HIGHEST (default: 1,4; with --from none).',
)
# Flags that say how nodules are, or what is taken for one.
_OF_NODULES = {'attached', 'detected_candidates', 'diameter'}


def main(argv):
  del argv
  size = _parse(_SIZE, 3, int, 'X,Y,Z in voxels, such as 192,192,128')
  out = os.path.abspath(_OUT.value)
  if os.path.lexists(out):
    raise errors.UserError(f'--out {_OUT.value} exists; give a new folder')
  variation = _make_variation()
  try:
    os.makedirs(os.path.dirname(out), exist_ok=True)
    temporary = tempfile.mkdtemp(
      prefix=f'.{os.path.basename(out)}.', dir=os.path.dirname(out)
    )
  except OSError as error:
    raise errors.UserError(
      f'--out {_OUT.value} cannot be made: {error.strerror}; give a folder'
      ' that can be written'
    ) from error
  try:
    phantom.write_luna16(
      temporary,
      scans=_SCANS.value,
      size=size,
      seed=_SEED.value,
      variation=variation,
      source=_FROM.value,
    )
    os.chmod(temporary, 0o755)
    os.rename(temporary, out)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  print(f'{_SCANS.value} scans in {_OUT.value}')


def _make_variation() -> phantom.Variation | None:
  """Returns the variation that the flags ask for, None if for none."""
  changes = {
    flag.name: flag.value for flag in _NUMBERS if flag.value is not None
  }
  for flag in _RANGES:
    if flag.value is not None:
      changes[flag.name] = _parse(flag, 2, float, 'LOWEST,HIGHEST')
  if _NODULES.value is not None:
    changes['nodules'] = _parse(_NODULES, 2, int, 'LOWEST,HIGHEST')
  if _DETECTED_CANDIDATES.value:
    changes['detected_candidates'] = True
  if not changes:
    return None
  if _FROM.value is None:
    usual = phantom.Variation()
  else:
    usual = phantom.variation_of(reader.read_scan(_FROM.value))
  variation = dataclasses.replace(usual, **changes)
  idle = sorted(changes.keys() & _OF_NODULES)
  if idle and variation.nodules[1] == 0:
    raise errors.UserError(
      f'--{", --".join(idle)} would do nothing without nodules: give --nodules'
      ' too, such as --nodules 1,4'
    )
  return variation


def _parse(flag, count: int, kind, wanted: str) -> tuple:
  """Returns the numbers of a flag that holds a list."""
  try:
    numbers = tuple(kind(one) for one in flag.value)
  except ValueError:
    numbers = ()
  if len(numbers) != count:
    raise errors.UserError(
      f'--{flag.name} must be {wanted}, got {",".join(flag.value)}'
    )
  return numbers


if __name__ == '__main__':
  mains.run(main)
