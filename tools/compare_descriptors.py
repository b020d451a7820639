r"""Compares descriptors of scans by the patients that they call similar.

  python tools/make_phantom.py --out PHANTOM --scans 64 --size 128,128,64
  python -m beam_jobs.index_scans --scans PHANTOM --output INDEX
  python tools/compare_descriptors.py --scans PHANTOM --data INDEX \
      --model no_skips=MODEL --model skips=MODEL

A word is cut at the same voxels of the patients that are most similar to its
reference. Here the true anatomy is known, so the error of each of those cubes
can be told: the distance, in mm of the template, between what lies in its
middle and what lies in the middle of the reference's cube. The table has a row
per descriptor, and beside them the mean over all patients (what a random choice
gives) and the least that any ranking of whole patients reaches.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import tempfile

from absl import flags
import numpy as np

from beam_jobs import describe
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import schema
from transvw_tf2.discovery import descriptors
from transvw_tf2.discovery import neighbours
from transvw_tf2.scans import bend
from transvw_tf2.scans import phantom
from transvw_tf2.training import built_data

_SCANS = flags.DEFINE_string(
  'scans', None, 'Folder of tools/make_phantom.py.', required=True
)
_DATA = flags.DEFINE_string(
  'data', None, 'Index of the same scans, by index_scans.', required=True
)
_MODEL = flags.DEFINE_multi_string(
  'model', [], 'NAME=FOLDER of an exported autoencoder.'
)
_PATIENTS = flags.DEFINE_integer(
  'patients', 5, 'Nearest patients of a reference.', lower_bound=1
)
_PLACES = flags.DEFINE_integer(
  'places', 20, 'Random places in a reference.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 1, 'Decides the places.', lower_bound=0)


def draw_centres(size: Sequence[int], count: int, rng) -> np.ndarray:
  """Draws middles of cubes inside a scan, float64 voxels (count, 3)."""
  last = np.subtract(size, schema.CUBE_SHAPE)
  corners = rng.integers(0, last + 1, (count, 3))
  return corners + (np.array(schema.CUBE_SHAPE) - 1) / 2


def measure_errors(
  reference: bend.Truth,
  patients: Sequence[bend.Truth],
  centres: np.ndarray,
) -> np.ndarray:
  """Returns how far the cubes of patients lie from what they should show.

  Args:
    reference: where the places were chosen.
    patients: whose cubes are cut at the same voxels.
    centres: float64 (P, 3), middles of the cubes, voxels.

  Returns:
    float64 (len(patients), P), mm of the template; NaN where a patient's scan
    is too small for the cube.
  """
  wanted = reference.template_coordinates(centres)
  reach = centres + (np.array(schema.CUBE_SHAPE) - 1) / 2
  table = []
  for patient in patients:
    distance = np.linalg.norm(
      patient.template_coordinates(centres) - wanted, axis=-1
    )
    fits = (reach <= np.array(patient.geometry.size) - 1).all(axis=-1)
    table.append(np.where(fits, distance, np.nan))
  return np.array(table)


def nearest_error(order: np.ndarray, table: np.ndarray, count: int) -> float:
  """Returns the mean error of the nearest patients over all places.

  Args:
    order: int (N,), patients from the nearest to the farthest.
    table: from `measure_errors`; too small patients are passed over.
    count: patients taken for each place.
  """
  ranked = table[order]
  taken = np.isfinite(ranked).cumsum(axis=0) <= count
  return float(np.nanmean(np.where(taken, ranked, np.nan)))


def compare(
  tables: Mapping[str, tuple[np.ndarray, Sequence[str]]],
  described: Mapping[str, Mapping[str, np.ndarray]],
  count: int,
) -> dict[str, np.ndarray]:
  """Returns the mean error (mm) of each reference by descriptor.

  Args:
    tables: by reference, the table of `measure_errors` and the scan ids of its
      rows.
    described: by name, descriptors by scan id.
    count: nearest patients.
  """
  found = {name: [] for name in ('random', *described, 'best possible')}
  for reference, (table, patients) in tables.items():
    found['random'].append(np.nanmean(table))
    for name, vectors in described.items():
      order, _ = neighbours.rank(
        vectors[reference], np.stack([vectors[one] for one in patients])
      )
      found[name].append(nearest_error(order, table, count))
    order = np.argsort(np.nanmean(table, axis=1), kind='stable')
    found['best possible'].append(nearest_error(order, table, count))
  return {name: np.array(values) for name, values in found.items()}


def read_thumbnails(data_dir: str) -> dict[str, dict[str, np.ndarray]]:
  """Returns int16 thumbnails by split and scan id."""
  data = built_data.open_data(data_dir, built_data.THUMBNAILS)
  return {
    split: {
      one['scan_id'].decode(): one['thumbnail']
      for one in data.builder.as_dataset(split).as_numpy_iterator()
    }
    for split in data.sizes
  }


def describe_by_pca(splits) -> dict[str, np.ndarray]:
  """Returns descriptors by the principal components of training scans."""

  def reduce(hu):
    sides = [
      part
      for side in descriptors.THUMBNAIL_SHAPE
      for part in (side, hu.shape[0] // descriptors.THUMBNAIL_SHAPE[0])
    ]
    means = hu.astype(np.float32).reshape(sides).mean(axis=(1, 3, 5))
    return schema.scale_hu(means)

  train = splits[schema.TRAIN]
  pca = descriptors.fit_pca(np.stack([reduce(train[one]) for one in train]))
  every = {key: hu for split in splits.values() for key, hu in split.items()}
  rows = descriptors.project(pca, (reduce(hu) for hu in every.values()))
  return dict(zip(every, rows, strict=True))


def parse_models(models: Sequence[str]) -> dict[str, str]:
  """Returns the folders of NAME=FOLDER models by name, as they can be used."""
  folders = {}
  for text in models:
    name, _, folder = text.partition('=')
    if not folder or name in folders:
      raise errors.UserError(
        f'--model is {text!r}, wanted NAME=FOLDER with a name of its own'
      )
    describe.check_model(folder)
    folders[name] = folder
  return folders


def describe_by_models(data_dir, folders) -> dict[str, dict[str, np.ndarray]]:
  """Returns descriptors by name and scan id, from the folders by name."""
  found = {}
  index = built_data.open_data(data_dir, built_data.THUMBNAILS).data_dir
  for name, folder in folders.items():
    with tempfile.TemporaryDirectory() as temporary:
      scan_ids, matrix = describe.describe_index(index, folder, temporary)
    found[f'autoencoder {name}'] = dict(zip(scan_ids, matrix, strict=True))
  return found


def make_tables(truths, references, patients, places: int, seed: int):
  """Returns the `tables` of `compare`; a reference is no patient of its own."""
  tables = {}
  for reference in sorted(references):
    others = sorted(set(patients) - {reference})
    rng = np.random.default_rng([seed, schema.stable_hash(reference)])
    truth = truths[reference]
    centres = draw_centres(truth.geometry.size, places, rng)
    table = measure_errors(truth, [truths[one] for one in others], centres)
    tables[reference] = (table, others)
  return tables


def print_variation(scans: str) -> None:
  """Prints how the patients differ."""
  path = os.path.join(scans, phantom.SETTINGS_FILE)
  with open(path, encoding='utf-8') as file:
    settings = json.load(file)
  variation = settings['variation'] or 'the default'
  print(f'patients: seed {settings["seed"]}, variation {variation}')


def main(argv):
  del argv
  folders = parse_models(_MODEL.value)
  truths = phantom.load_truth(_SCANS.value)
  splits = read_thumbnails(_DATA.value)
  missing = {key for split in splits.values() for key in split} - set(truths)
  if missing:
    raise errors.UserError(
      f'--data has {len(missing)} scans that are not in --scans, first'
      f' {min(missing)}: index these scans with beam_jobs.index_scans'
    )
  described = {
    'pca': describe_by_pca(splits),
    **describe_by_models(_DATA.value, folders),
  }
  print_variation(_SCANS.value)
  count = _PATIENTS.value
  print(
    f'mean error (mm) of the cubes of the {count} nearest patients, at'
    f' {_PLACES.value} random places in each training scan, with its standard'
    ' error over references'
  )
  for split, patients in splits.items():
    tables = make_tables(
      truths, splits[schema.TRAIN], patients, _PLACES.value, _SEED.value
    )
    found = compare(tables, described, count)
    for name, values in found.items():
      error = values.std(ddof=1) / np.sqrt(len(values))
      print(
        f'{split} patients, {name}: {values.mean():.2f} +- {error:.2f} mm,'
        f' {values.mean() / found["random"].mean():.3f} of random'
      )


if __name__ == '__main__':
  mains.run(main)
