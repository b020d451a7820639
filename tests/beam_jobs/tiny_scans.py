"""Tiny chest-like scans for tests: air all over, a rod of soft tissue."""

import csv
import os

import numpy as np
from scipy import ndimage
import SimpleITK as sitk

from transvw_tf2 import schema
from transvw_tf2.scans import geometry
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

SIZE = (80, 80, 48)


def make_hu(index: int, size=SIZE) -> np.ndarray:
  """Makes a scan, int16 [x, y, z], HU; each index gives another patient.

  The rod fills 4 % of a cube, so every place passes the soft-tissue filter.
  """
  rng = np.random.default_rng([42, index])
  smooth = ndimage.gaussian_filter(rng.normal(size=size), 3.0)
  hu = -800.0 + 60.0 * smooth / smooth.std()
  x, y = rng.integers(20, 50, size=2)
  hu[x : x + 13, y : y + 13] += 850.0
  return np.rint(hu).astype(np.int16)


def make_geometry(index: int, size=SIZE) -> geometry.Geometry:
  """Returns a geometry with a spacing of its own, exact in float32."""
  return geometry.Geometry(size, spacing=(0.5 + index / 64, 0.75, 2.5))


def write_scan(folder, index: int, size=SIZE) -> str:
  """Writes a scan as {scan id}.mhd and .raw and returns the scan id."""
  os.makedirs(folder, exist_ok=True)
  scan_id = f'1.2.840.{index:03d}'
  reader.write_scan(
    os.path.join(folder, f'{scan_id}.mhd'),
    make_hu(index, size),
    make_geometry(index, size),
  )
  return scan_id


def write_luna16(folder, *, train=4, validation=2, held_out=1) -> str:
  """Writes scans in the layout of LUNA16 and returns the folder as text.

  Scans are numbered from 0: training in subset0 to 4 in turn, validation in
  subset5 and 6, held out in subset7.
  """
  subsets = [index % 5 for index in range(train)]
  subsets += [5 + index % 2 for index in range(validation)]
  subsets += [7] * held_out
  for index, subset in enumerate(subsets):
    write_scan(os.path.join(folder, f'subset{subset}'), index)
  return os.fspath(folder)


def write_bad(folder) -> dict[str, str]:
  """Writes scans that cannot be used; returns the reason by scan id."""
  folder = os.fspath(folder)
  for scan_id in ('truncated', 'missing'):
    hu = make_hu(99)
    path = os.path.join(folder, f'{scan_id}.mhd')
    reader.write_scan(path, hu, make_geometry(99))
  os.truncate(os.path.join(folder, 'truncated.raw'), 1000)
  os.remove(os.path.join(folder, 'missing.raw'))
  with open(os.path.join(folder, 'text.mhd'), 'w', encoding='utf-8') as file:
    file.write('the scan is on the other disk\n')
  flat = sitk.GetImageFromArray(np.zeros((80, 80), np.int16))
  sitk.WriteImage(flat, os.path.join(folder, 'flat.mhd'))
  small = (63, 80, 48)
  reader.write_scan(
    os.path.join(folder, 'small.mhd'),
    make_hu(98, small),
    make_geometry(98, small),
  )
  return {
    'flat': 'not_3d',
    'missing': 'missing_raw',
    'small': 'too_small',
    'text': 'unreadable',
    'truncated': 'truncated',
  }


def write_labels(folder) -> None:
  """Writes a labels.csv with the candidates of a folder made as LUNA16 is."""
  paths = {one.scan_id: one.path for one in luna16.find_scans(str(folder))}
  path = os.path.join(folder, 'labels.csv')
  with open(path, 'w', newline='', encoding='utf-8') as file:
    rows = csv.writer(file)
    rows.writerow(['scan', 'x', 'y', 'z', 'label'])
    for one in luna16.read_candidates(str(folder)):
      scan = os.path.relpath(paths[one.scan_id], folder)
      rows.writerow([scan, *one.centre, ('vessel', 'nodule')[one.label]])


def expected_cube(hu: np.ndarray, origin, size) -> np.ndarray:
  """Cuts and resizes with SciPy: linear, half-pixel centres, mirrored.

  float64 `schema.CUBE_SHAPE`, HU; the cubes of the data set are rounded.
  """
  box = hu[tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))]
  box = np.clip(box, -1000, 1000).astype(np.float64)
  steps = [
    (np.arange(cube) + 0.5) * side / cube - 0.5
    for cube, side in zip(schema.CUBE_SHAPE, size, strict=True)
  ]
  grid = np.meshgrid(*steps, indexing='ij')
  return ndimage.map_coordinates(box, grid, order=1, mode='mirror')
