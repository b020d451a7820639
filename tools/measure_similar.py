r"""Measures how often the most similar place is the same one.

  python tools/measure_similar.py --embeddings EMBEDDINGS --scans PHANTOM \
      --output pairs.csv

tells, for each pair of patients that tools/make_phantom.py made, how often the
most similar place truly is the same one: within --radius mm in the anatomy that
both were bent from, by embeddings whitened and as they are. Beside it stand the
pixels of the cubes, shrunk and compared by normalised correlation, and whitened
too; the same voxels; a random place; and the best that this grid of cubes
allows. EMBEDDINGS is what `beam_jobs.embed_scans` wrote of these patients.
"""

from collections.abc import Sequence
import itertools
import os
from typing import NamedTuple

from absl import flags
import numpy as np
import pandas as pd
from scipy import spatial

from beam_jobs import embedding_files
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_file
from transvw_tf2.discovery import retrieval
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed

_EMBEDDINGS = flags.DEFINE_string(
  'embeddings', None, 'Folder that embed_scans wrote.', required=True
)
_SCANS = flags.DEFINE_string(
  'scans', None, 'Folder that make_phantom.py made.', required=True
)
_RADIUS = flags.DEFINE_float(
  'radius', 15.0, 'Within so many mm a place is the same.', lower_bound=0.0
)
_OUTPUT = flags.DEFINE_string('output', None, 'Table (.csv) to write.')

_EMBEDDING, _PIXELS, _SAME_VOXELS = 'embedding', 'pixels', 'same voxels'
_WHITENED = '%s, whitened'
_BATCH = 64


def measure(folder: str, scans: str, radius: float) -> pd.DataFrame:
  """Measures how often the most similar place is the same one.

  All cubes of a patient are looked for in each other patient.

  Args:
    folder: of the embeddings.
    scans: folder that tools/make_phantom.py made.
    radius: mm of the anatomy within which a place is the same.

  Returns:
    A row per ordered pair of patients: `query`, `patient`, `places` (cubes
    looked for) and, by method, the share of them that was found, see
    `retrieval.score_choices`.

  Raises:
    UserError: the anatomy is not known, or there are less than two patients.
    reader.ScanError: a scan cannot be read.
  """
  truths = phantom.load_truth(scans)
  scan_ids = embedding_files.list_scans(folder)
  paths = embedding_files.find_paths(scans, scan_ids)
  if len(scan_ids) < 2:
    raise errors.UserError(
      f'{folder} holds {len(scan_ids)} patient, wanted 2 or more: embed more'
      ' scans'
    )
  if strangers := sorted(set(scan_ids) - set(truths)):
    raise errors.UserError(
      f'{scans} does not tell the anatomy of {len(strangers)} scans of'
      f' {folder}, first {strangers[0]}: embed scans of make_phantom.py alone'
    )
  cube_shape = embedding_files.read_settings(folder).cube_shape
  known = {}
  for scan_id in scan_ids:
    one = embedding_files.read_scan(folder, scan_id)
    middles = embedding_files.middle_voxels(one.places, cube_shape)
    known[scan_id] = _Known(
      one.places,
      truths[scan_id].template_coordinates(middles),
      {
        _EMBEDDING: one.embeddings,
        _PIXELS: _describe_pixels(paths[scan_id], one.places, cube_shape),
      },
    )
  _add_whitened(list(known.values()))
  rows = []
  for query, patient in itertools.permutations(scan_ids, 2):
    shares = _score_pair(known[query], known[patient], radius)
    places = len(known[query].places)
    rows.append(
      {'query': query, 'patient': patient, 'places': places, **shares}
    )
  return pd.DataFrame(rows)


class _Known(NamedTuple):
  """The cubes of a patient: corners, anatomy, and rows to compare by method."""

  places: np.ndarray
  anatomy: np.ndarray
  described: dict[str, np.ndarray]


def _add_whitened(known: Sequence[_Known]) -> None:
  """Whitens the rows of each method by those of all patients."""
  for method in (_EMBEDDING, _PIXELS):
    whitening = retrieval.fit_whitening(
      (one.described[method] for one in known), len(known)
    )
    for one in known:
      one.described[_WHITENED % method] = whitening(one.described[method])


def _describe_pixels(path, places, cube_shape) -> np.ndarray:
  hu = reader.read_scan(path, cube_shape=cube_shape).hu
  return np.concatenate(
    [
      retrieval.describe_pixels(cubes)
      for cubes in embed.cut_batches(hu, places, cube_shape, _BATCH)
    ]
  )


def _score_pair(query: _Known, patient: _Known, radius) -> dict[str, float]:
  choices = {
    method: retrieval.find_nearest(rows, patient.described[method], 1)[0][:, 0]
    for method, rows in query.described.items()
  }
  _, choices[_SAME_VOXELS] = spatial.KDTree(patient.places).query(query.places)
  return retrieval.score_choices(
    query.anatomy, patient.anatomy, choices, radius
  )


def summarise(pairs: pd.DataFrame) -> pd.DataFrame:
  """Sums up the table of `measure`.

  Args:
    pairs: of `measure`.

  Returns:
    A row per method: `found`, its share of all places looked for, and
    `standard_error`, over the patients that they were looked for from.
  """
  methods = list(pairs.columns[3:])
  weighted = pairs[methods].mul(pairs['places'], axis=0)
  by_query = (
    weighted.groupby(pairs['query'])
    .sum()
    .div(pairs.groupby('query')['places'].sum(), axis=0)
  )
  return pd.DataFrame(
    {
      'found': weighted.sum() / pairs['places'].sum(),
      'standard_error': by_query.sem(),
    }
  )


def main(argv):
  del argv
  if _OUTPUT.value and os.path.splitext(_OUTPUT.value)[1] != '.csv':
    raise errors.UserError(
      f'--output is {_OUTPUT.value}, wanted a file that ends in .csv'
    )
  if _OUTPUT.value:
    output_file.check_place(_OUTPUT.value)  # before the work of many minutes
  pairs = measure(_EMBEDDINGS.value, _SCANS.value, _RADIUS.value)
  percent = '{:.1%}'.format
  print(pairs.to_string(index=False, float_format=percent))
  print(
    f'found within {_RADIUS.value:g} mm, {pairs["places"].sum()} places in'
    f' {len(pairs)} pairs of patients:'
  )
  print(summarise(pairs).to_string(float_format=percent))
  if _OUTPUT.value:
    with output_file.replacing(_OUTPUT.value) as path:
      pairs.to_csv(path, index=False)


if __name__ == '__main__':
  mains.run(main)
