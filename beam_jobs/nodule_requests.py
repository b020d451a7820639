"""Which cubes the target tasks of LUNA16 want of which scan."""

import collections
from collections.abc import Sequence
import os

import numpy as np

from beam_jobs import builders
from beam_jobs import target_cubes
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import luna16
from transvw_tf2.scans import masks
from transvw_tf2.scans import storage
from transvw_tf2.scans import target_places

FALSE_POSITIVE_REDUCTION = 'false_positive_reduction'
NODULE_SEGMENTATION = 'nodule_segmentation'
LUNG_SEGMENTATION = 'lung_segmentation'
TASKS = {
  FALSE_POSITIVE_REDUCTION: 'Nodule candidates: nodule or not.',
  NODULE_SEGMENTATION: 'Voxels of nodules.',
  LUNG_SEGMENTATION: 'Voxels of the lungs.',
}
CLASSES = ('not_nodule', 'nodule')
SPLITS = (schema.TRAIN, schema.VALIDATION, schema.TEST)
UNKNOWN = 'unknown_seriesuid'


def classes_of(task: str) -> tuple[str, ...]:
  """Returns the names of the classes, none for a segmentation."""
  return CLASSES if task == FALSE_POSITIVE_REDUCTION else ()


def make_requests(
  folder: str, scan_files: Sequence[luna16.ScanFile], config, output: str
) -> tuple[list[target_cubes.Request], list[tuple[str, str, str]]]:
  """Returns what is wanted of each scan, sorted by scan id.

  Args:
    folder: LUNA16.
    scan_files: of that folder.
    config: of the builder.
    output: folder of the cubes.

  Returns:
    The requests, and (scan id, reason, detail) of rows that name no scan.

  Raises:
    NotForThisTaskError: a file of the task is not there, or empty.
    LayoutError: it is broken.
  """
  if not any(one.subset is not None for one in scan_files):
    raise errors.UserError(
      f'{folder} has no subset0 .. subset9, by which LUNA16 is divided; for'
      ' your own scans use labelled_scans'
    )
  make = {
    FALSE_POSITIVE_REDUCTION: _around_candidates,
    NODULE_SEGMENTATION: _around_nodules,
    LUNG_SEGMENTATION: _in_lungs,
  }[config.task]
  by_id = {one.scan_id: one for one in scan_files}
  places, rejected = make(folder, by_id, config)
  requests = [
    target_cubes.Request(
      scan_file=by_id[scan_id],
      split=_split(by_id[scan_id]),
      places=one,
      cube=config.cube(),
      output=target_cubes.output_path(output, scan_id),
    )
    for scan_id, one in sorted(places.items())
  ]
  return requests, rejected


def _split(scan_file: luna16.ScanFile) -> str:
  held_out = scan_file.split == schema.HELD_OUT
  return schema.TEST if held_out else scan_file.split


def _around_candidates(folder, by_id, config):
  _require(folder, luna16.CANDIDATES_FILE)
  rows = luna16.read_candidates(folder)
  _require_rows(rows, folder, luna16.CANDIDATES_FILE)
  known, rejected = _known(rows, by_id)
  points = collections.defaultdict(list)
  for one in _sample(known, by_id, config):
    points[one.scan_id].append((one.centre, one.label))
  places = {
    scan_id: target_places.AroundPoints(tuple(of_scan), config.cube())
    for scan_id, of_scan in points.items()
  }
  return places, rejected


def _sample(candidates, by_id, config) -> list[luna16.Candidate]:
  """Keeps all nodules, and per split some of the others, in their order."""
  if config.negatives_per_positive is None:
    return sorted(candidates, key=_place_key)
  chosen = []
  for number, split in enumerate(SPLITS):
    of_split = [
      one for one in candidates if _split(by_id[one.scan_id]) == split
    ]
    negatives = [place for place, one in enumerate(of_split) if not one.label]
    positives = len(of_split) - len(negatives)
    wanted = min(
      len(negatives), round(config.negatives_per_positive * positives)
    )
    # By seed and number in the file's sorted order, not by its order.
    negatives.sort(
      key=lambda place: (of_split[place].scan_id, of_split[place].centre)
    )
    rng = np.random.default_rng([config.seed, number])
    kept = {negatives[one] for one in rng.permutation(len(negatives))[:wanted]}
    chosen += [
      one for place, one in enumerate(of_split) if one.label or place in kept
    ]
  return sorted(chosen, key=_place_key)


def _place_key(candidate: luna16.Candidate):
  return candidate.scan_id, candidate.centre, candidate.label


def _around_nodules(folder, by_id, config):
  _require(folder, luna16.ANNOTATIONS_FILE)
  masks_folder = config.masks
  if masks_folder is not None:
    if not storage.is_folder(masks_folder):
      raise errors.UserError(f'config field masks: no folder {masks_folder}')
    masks_folder = storage.absolute(masks_folder)
  rows = luna16.read_annotations(folder)
  _require_rows(rows, folder, luna16.ANNOTATIONS_FILE)
  known, rejected = _known(rows, by_id)
  nodules = collections.defaultdict(list)
  for one in sorted(known, key=lambda one: (one.scan_id, one.centre)):
    nodules[one.scan_id].append((one.centre, one.diameter))
  places = {}
  for scan_id, of_scan in nodules.items():
    mask_path = None
    if masks_folder is not None:
      mask_path = masks.find_mask(masks_folder, scan_id)
      if mask_path is None:
        rejected.append((scan_id, masks.MISSING, f'none in {config.masks}'))
        continue
    places[scan_id] = target_places.AroundNodules(
      scan_id=scan_id,
      nodules=tuple(of_scan),
      cube=config.cube(),
      mask_path=mask_path,
      jitter_mm=config.jitter_mm,
      without_nodule=config.without_nodule,
      lungs_path=luna16.lung_mask_path(folder, scan_id),
      seed=config.seed,
    )
  return places, rejected


def _in_lungs(folder, by_id, config):
  _require(folder, luna16.LUNG_MASK_FOLDER)
  places, rejected = {}, []
  for scan_id in by_id:
    path = luna16.lung_mask_path(folder, scan_id)
    if path is None:
      detail = f'none in {luna16.LUNG_MASK_FOLDER}'
      rejected.append((scan_id, masks.MISSING, detail))
      continue
    places[scan_id] = target_places.InMask(
      scan_id=scan_id,
      mask_path=path,
      cube=config.cube(),
      cubes=config.lung_cubes,
      values=masks.LUNGS,
      jitter_mm=config.jitter_mm,
      seed=config.seed,
    )
  if not places:
    raise builders.NotForThisTaskError(
      f'no mask of these scans in {luna16.LUNG_MASK_FOLDER} in {folder}'
    )
  return places, rejected


def _require_rows(rows, folder, name) -> None:
  if not rows:
    raise builders.NotForThisTaskError(f'no rows in {name} in {folder}')


def _require(folder, name) -> None:
  if not storage.exists(os.path.join(folder, name)):
    raise builders.NotForThisTaskError(
      f'no {name} in {folder}; it comes with LUNA16'
    )


def _known(rows, by_id):
  """Divides rows into those of known scans and (scan id, reason, detail)."""
  counts = collections.Counter(
    one.scan_id for one in rows if one.scan_id not in by_id
  )
  rejected = [
    (scan_id, UNKNOWN, f'{count} rows of a scan that is not in the folder')
    for scan_id, count in counts.items()
  ]
  return [one for one in rows if one.scan_id in by_id], rejected
