"""Small collections of scans, as the choice of words sees them."""

import dataclasses

import numpy as np

from transvw_tf2 import schema
from transvw_tf2.discovery import selection
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import lung_box

_SIZE = (120, 110, 60)


def make_settings(**changes):
  return settings_lib.Settings(
    **{'words': 4, 'instances': 5, 'validation_instances': 2} | changes
  )


def make_row(scan_id, split=schema.TRAIN, size=_SIZE, candidates=None, seed=0):
  if candidates is None:
    rng = np.random.default_rng([seed, schema.stable_hash(scan_id)])
    candidates = rng.integers(0, (50, 40, 25), (20, 3))
  return selection.ScanRow(
    scan_id, split, size, np.asarray(candidates, np.int32).reshape(-1, 3)
  )


def make_collection(train=8, validation=3, seed=0):
  scans = [make_row(f't{index}') for index in range(train)]
  scans += [
    make_row(f'v{index}', schema.VALIDATION, candidates=[])
    for index in range(validation)
  ]
  rng = np.random.default_rng(seed)
  descriptors = {
    scan.scan_id: rng.normal(size=6).astype(np.float32) for scan in scans
  }
  return scans, descriptors


def make_lung_collection():
  """Makes patients of other spacing, position and lungs; t4 and v1 lack them.

  The z axis of t5 is cut at its lower end, and t6 is so small that cubes leave
  it.
  """
  rng = np.random.default_rng(7)
  scans, descriptors = make_collection(train=9, validation=3)
  changed = []
  for scan in scans:
    small = scan.scan_id == 't6'
    low = rng.uniform((5, 5, 3), (20, 20, 8))
    high = low + rng.uniform((150, 150, 90), (200, 200, 120))
    lungs = lung_box.LungBox(
      tuple(low.tolist()),
      tuple(high.tolist()),
      low_cut=(False, False, scan.scan_id == 't5'),
    )
    spacing = rng.uniform((0.6, 0.6, 1.0), (0.8, 0.8, 2.5))
    changed.append(
      dataclasses.replace(
        scan,
        size=(70, 70, 40) if small else (260, 250, 160),
        candidates=scan.candidates[small * 20 :] + np.int32((30, 40, 30)),
        spacing=(spacing[0], spacing[0], spacing[2]),
        lungs=None if scan.scan_id in ('t4', 'v1') else lungs,
      )
    )
  return changed, descriptors
