r"""Compares the frames `voxel` and `lung` on patients of known anatomy.

  python tools/make_phantom.py --out PHANTOMS --scans 40 --size 192,192,0 \
      --seed 101 --translation_sd 20 --scale 0.85,1.2 --displacement_sd 5 \
      --field_of_view 300,420 --slice_thickness 0.6,2.5
  python tools/make_phantom.py --from SCAN --out BENT (and the same flags)
  python tools/compare_frames.py --scans PHANTOMS --scans BENT

Discovers words in each folder in both frames, every patient in training, and
prints a table: how far (mm) the cubes of a word truly lie from its place, and
how alike they are. A minute for 40 scans of 192x192x250 voxels on two cores.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import tempfile

from absl import flags
import numpy as np

from beam_jobs import common_flags
from beam_jobs import discovery
from beam_jobs import word_quality
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import schema
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader

_SCANS = flags.DEFINE_multi_string(
  'scans',
  None,
  'Folder that tools/make_phantom.py made; may be given several times.',
  required=True,
)
_CHECK = flags.DEFINE_boolean(
  'check',
  False,
  'Fail unless the frame of the lungs has at most half of the error, and words'
  ' that are more alike within and less so between.',
)
common_flags.define_settings(leave_out=('frame',))

_UNITS = {
  'translation_sd': 'mm',
  'rotation_sd': 'degrees',
  'displacement_sd': 'mm',
  'field_of_view': 'mm',
  'length': 'mm',
  'slice_thickness': 'mm',
  'noise': 'HU',
}


def describe_folder(folder: str) -> list[str]:
  """Returns what the patients of a folder are and how much they differ.

  Raises:
    UserError: the folder was not made by tools/make_phantom.py.
  """
  path = os.path.join(folder, phantom.SETTINGS_FILE)
  try:
    with open(path, encoding='utf-8') as file:
      made_with = json.load(file)
  except OSError as error:
    raise errors.UserError(
      f'no {path}; the truth is known only of folders made by'
      ' tools/make_phantom.py'
    ) from error
  source, variation = made_with['source'], made_with['variation']
  if variation is None:
    usual = (
      phantom.variation_of(reader.read_scan(source))
      if source
      else phantom.Variation()
    )
    variation = dataclasses.asdict(usual)
  parts = []
  for name, unit in _UNITS.items():
    value = variation[name]
    if value is not None:
      ends = value if isinstance(value, Sequence) else [value]
      text = '-'.join(f'{one:g}' for one in ends)
      parts.append(f'{name.replace("_", " ")} {text} {unit}')
  parts.insert(2, f'scale {variation["scale"][0]:g}-{variation["scale"][1]:g}')
  kind = f'bent from {source}' if source else 'synthetic'
  return [
    f'{folder}: {len(made_with["scan_ids"])} patients, {kind}, seed'
    f' {made_with["seed"]}',
    f'variation: {", ".join(parts)}',
  ]


def measure_frame(
  folder: str, settings: settings_lib.Settings
) -> tuple[int, quality.Quality]:
  """Discovers words in one frame.

  Args:
    folder: of the scans; all of them are in training, whatever their subset.
    settings: with the frame.

  Returns:
    The number of words and their quality.
  """
  scan_files = [
    dataclasses.replace(one, split=schema.TRAIN)
    for one in luna16.find_scans(folder)
  ]
  with tempfile.TemporaryDirectory() as temporary:
    found = discovery.discover(scan_files, temporary, settings)
    measured = word_quality.cut_and_measure(
      scan_files, found.vocabulary, folder, temporary
    )
  return len(found.vocabulary.words), measured


def make_table(results: dict[str, tuple[int, quality.Quality]]) -> list[str]:
  """Returns the lines of a table with a row per frame and one of ratios."""
  lines = [
    'frame  words  cubes  error mm: mean  median  95 %'
    '   within  between  silhouette'
  ]
  for frame, (words, measured) in results.items():
    one = measured.overall
    mm = np.array(list(measured.errors_mm.values()))
    lines.append(
      f'{frame:<7}{words:5d}{len(mm):7d}{mm.mean():16.1f}{np.median(mm):8.1f}'
      f'{np.percentile(mm, 95):6.1f}{one.within:9.3f}{one.between:9.3f}'
      f'{one.silhouette:12.3f}'
    )
  return lines


def compare(
  voxel: quality.Scores, lung: quality.Scores
) -> list[tuple[str, bool]]:
  """Returns how `lung` fares against `voxel`: lines, and whether it is good."""
  ratio = lung.error_mm / voxel.error_mm
  margins = [one.within - one.between for one in (voxel, lung)]
  return [
    (
      f'error of lung / voxel: {ratio:.2f} (wanted 0.50 or less)',
      ratio <= 0.5,
    ),
    (
      f'similarity within - between words: voxel {margins[0]:.3f}, lung'
      f' {margins[1]:.3f} (wanted more)',
      margins[1] > margins[0],
    ),
  ]


def main(argv):
  del argv
  settings = common_flags.settings_from_flags()
  short = []
  for folder in _SCANS.value:
    print('\n'.join(describe_folder(folder)))
    results = {
      frame: measure_frame(folder, dataclasses.replace(settings, frame=frame))
      for frame in frames.FRAMES
    }
    voxel, lung = (results[frame][1].overall for frame in frames.FRAMES)
    lines = compare(voxel, lung)
    print('\n'.join([*make_table(results), *(line for line, _ in lines), '']))
    short += [f'{folder}: {line}' for line, good in lines if not good]
  if _CHECK.value and short:
    raise errors.UserError(f'the frame of the lungs is not better: {short[0]}')


if __name__ == '__main__':
  mains.run(main)
