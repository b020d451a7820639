"""Synthetic chest CT in LUNA16's layout, whose true anatomy is known.

A patient is a smooth seeded transform of one original: the template anatomy,
or a real scan. The transform is kept, so the same anatomical place can be found
in every patient, and words can be measured against the truth.
"""

from collections.abc import Collection
import csv
import dataclasses
import functools
import hashlib
import json
import os
import uuid

import numpy as np
from scipy import ndimage
import tqdm

from transvw_tf2 import errors
from transvw_tf2.scans import bend as bend_lib
from transvw_tf2.scans import false_candidates as candidate_lib
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import nodules as nodule_lib
from transvw_tf2.scans import reader
from transvw_tf2.scans import real_lungs
from transvw_tf2.scans.anatomy import table as table_lib
from transvw_tf2.scans.anatomy import template as template_lib

TRANSFORM_FOLDER = 'transforms'
SETTINGS_FILE = 'phantom.json'

_SUBSETS = 10
# 1 GB of int16.
_MOST_VOXELS = 2**29
# HU outside of a real scan, and the lowest that is written.
_PADDING = -1024


@dataclasses.dataclass(frozen=True)
class Variation:
  """How much patients and their scans differ; ranges are (lowest, highest).

  Attributes:
    translation_sd: sd of the position in the field of view, mm per axis.
    rotation_sd: sd of the pose, degrees about each axis.
    scale: range of the size over that of the original, per axis.
    displacement_sd: sd of the smooth non-rigid displacement, mm per axis.
    field_of_view: range of the larger in-plane side of a scan, mm.
    length: range of the length of a scan along z, mm.
    slice_thickness: range of the spacing along z, mm; None takes it from the
      length and the number of slices.
    noise: range of the sd of the noise, HU.
    lung_density: range of what is added to the lungs' HU.
    nodules: range of the number of nodules.
    diameter: range of the diameter of a nodule, mm, before each of its radii
      varies by 15 %.
    attached: share of the nodules that touch the pleura or a vessel.
    detected_candidates: false candidates are what a blob detector finds in the
      scan, as in LUNA16's; else places in vessels.

  Raises:
    errors.UserError: a value is out of its range.
  """

  translation_sd: float = 8.0
  rotation_sd: float = 2.0
  scale: tuple[float, float] = (0.93, 1.07)
  displacement_sd: float = 3.0
  field_of_view: tuple[float, float] = (320.0, 400.0)
  length: tuple[float, float] = (310.0, 350.0)
  slice_thickness: tuple[float, float] | None = None
  noise: tuple[float, float] = (8.0, 25.0)
  lung_density: tuple[float, float] = (-20.0, 30.0)
  nodules: tuple[int, int] = (1, 4)
  diameter: tuple[float, float] = (6.0, 25.0)
  # Not in the names of the fields that scan ids are made of: those of patients
  # without attached nodules stay as they were, and candidates change no scan.
  attached: float = dataclasses.field(default=0.0, repr=False)
  detected_candidates: bool = dataclasses.field(default=False, repr=False)

  def __post_init__(self):
    least = {'lung_density': -np.inf, 'noise': 0.0, 'nodules': 0}
    for field in dataclasses.fields(self):
      name, value = field.name, getattr(self, field.name)
      if name.endswith('_sd'):
        wanted, good = '0 or more', 0 <= value < np.inf
      elif name == 'attached':
        wanted, good = 'a share from 0 to 1', 0 <= value <= 1
      elif name == 'detected_candidates' or (
        value is None and name == 'slice_thickness'
      ):
        continue
      else:
        # The other ranges are of lengths, which are positive.
        lowest = least.get(name, 1e-6)
        wanted = f'(lowest, highest) of {lowest:g} or more'
        good = lowest <= value[0] <= value[1] < np.inf
      if not good:
        raise errors.UserError(f'{name} must be {wanted}, got {value}')
    bend_lib.check_displacement_sd(self.displacement_sd)


@dataclasses.dataclass(frozen=True, eq=False)
class Patient:
  """A synthetic patient.

  Attributes:
    scan_id: in the form of a SeriesInstanceUID.
    hu: int16 [x, y, z], HU.
    lung_mask: uint8 [x, y, z], 3 left lung, 4 right lung, as in LUNA16; None
      for a bent real scan whose lungs are not known.
    nodules: in the lungs and inside the scan.
    false_candidates: float64 (n, 3) world mm, away from nodules.
    truth: where the anatomy lies, and the geometry of the scan.
  """

  scan_id: str
  hu: np.ndarray
  lung_mask: np.ndarray | None
  nodules: tuple[nodule_lib.Nodule, ...]
  false_candidates: np.ndarray
  truth: bend_lib.Truth

  @property
  def geometry(self) -> geometry_lib.Geometry:
    return self.truth.geometry

  def template_coordinates(self, voxels) -> np.ndarray:
    """Maps voxels as `bend.Truth.template_coordinates` does."""
    return self.truth.template_coordinates(voxels)


def make_patient(
  seed: int, index: int, size, variation: Variation | None = None
) -> Patient:
  """Makes a patient; the same arguments always give the same voxels.

  A different size gives the same anatomy in other voxels, as long as the sides
  keep their proportions in-plane.

  Args:
    seed: of the whole collection.
    index: of the patient.
    size: voxels [x, y, z]; z may be 0 where the variation has a range of slice
      thickness: then the length of the scan decides.
    variation: how much patients differ.

  Raises:
    errors.UserError: the size does not make a scan.
  """
  variation = variation or Variation()
  rng = np.random.default_rng([seed, index])
  geometry = _draw_geometry(rng, size, variation)
  template = template_lib.draw()
  lungs = nodule_lib.Lungs(
    template.lungs,
    template.geometry,
    template.vessels,
    np.array([np.zeros(3), template_lib.LUNG_BOX]),
  )
  truth = _draw_truth(rng, geometry, np.zeros(3), variation)
  nodules, false_candidates = _draw_nodules(rng, truth, lungs, variation)
  density = np.float32(rng.uniform(*variation.lung_density))
  sigma = rng.uniform(*variation.noise)
  table = table_lib.draw(geometry, truth.bend.invert(template.back))
  # Held as [z, y, x]: slabs and files are then whole pieces of memory.
  hu = np.empty(geometry.size[::-1], np.int16)
  mask = np.empty(geometry.size[::-1], np.uint8)
  for slab, voxels in truth.bend.slabs(geometry, template.geometry):
    values = _sample(template.hu, voxels, mode='nearest')
    mask[slab] = _sample_mask(template.lungs, voxels, mode='nearest')
    values += density * (mask[slab] > 0)
    for nodule in nodules:
      nodule_lib.add(values, slab, geometry, nodule)
    values += table
    hu[slab] = _with_noise(rng, values, sigma)
  if variation.detected_candidates:
    false_candidates = candidate_lib.detect_blobs(
      np.random.default_rng([seed, index, 2]), hu, mask, geometry, nodules
    )
  return Patient(
    scan_id=_scan_id('template', seed, index, geometry.size, variation),
    hu=hu.T,
    lung_mask=mask.T,
    nodules=nodules,
    false_candidates=false_candidates,
    truth=truth,
  )


def bend_scan(
  source: reader.Scan,
  seed: int,
  index: int,
  size,
  variation: Variation | None = None,
  lungs: nodule_lib.Lungs | None = None,
) -> Patient:
  """Bends a real scan into a patient: linear interpolation, and some noise.

  Places outside the real scan are air of -1024 HU.

  Args:
    source: the real scan.
    seed: of the whole collection.
    index: of the patient.
    size: voxels [x, y, z], as for `make_patient`.
    variation: how much patients differ; `variation_of(source)` if None.
    lungs: of the real scan, see `real_lungs.find`; without them the patient has
      no lung mask, no nodules and no candidates. Nodules that the real scan has
      are in no list.

  Raises:
    errors.UserError: the size does not make a scan.
  """
  variation = variation or variation_of(source)
  rng = np.random.default_rng([seed, index])
  geometry = _draw_geometry(rng, size, variation)
  middle = source.geometry.voxel_to_world(
    (np.array(source.geometry.size) - 1) / 2
  )
  truth = _draw_truth(rng, geometry, middle, variation)
  sigma = rng.uniform(*variation.noise)
  nodules, false_candidates = (), np.zeros((0, 3))
  mask = np.empty(geometry.size[::-1], np.uint8) if lungs else None
  if lungs:
    # A stream of its own: with nodules or not, the patient stays the same.
    own = np.random.default_rng([seed, index, 1])
    nodules, false_candidates = _draw_nodules(own, truth, lungs, variation)
  # Values below air are padding outside the round field of a scanner.
  original = np.maximum(source.hu, _PADDING)
  hu = np.empty(geometry.size[::-1], np.int16)
  for slab, voxels in truth.bend.slabs(geometry, source.geometry):
    values = _sample(original, voxels, mode='constant')
    if lungs:
      mask[slab] = _sample_mask(lungs.mask, voxels, mode='constant')
    for nodule in nodules:
      nodule_lib.add(values, slab, geometry, nodule)
    hu[slab] = _with_noise(rng, values, sigma)
  if lungs and variation.detected_candidates:
    false_candidates = candidate_lib.detect_blobs(
      np.random.default_rng([seed, index, 2]), hu, mask, geometry, nodules
    )
  digest = hashlib.blake2b(source.hu.tobytes(), digest_size=16).hexdigest()
  return Patient(
    scan_id=_scan_id(digest, seed, index, geometry.size, variation),
    hu=hu.T,
    lung_mask=mask.T if lungs else None,
    nodules=nodules,
    false_candidates=false_candidates,
    truth=truth,
  )


def variation_of(source: reader.Scan) -> Variation:
  """Returns how patients that are bent from a real scan differ by default.

  Their fields of view and lengths are about those of the real scan, whose own
  noise stays in them.
  """
  extent = np.multiply(source.geometry.size, source.geometry.spacing)
  side, length = float(extent[:2].max()), float(extent[2])
  return Variation(
    field_of_view=(0.97 * side, 1.03 * side),
    length=(0.97 * length, 1.03 * length),
    noise=(2.0, 10.0),
    nodules=(0, 0),
  )


def write_luna16(
  folder: str,
  scans: int,
  size,
  seed: int,
  variation: Variation | None = None,
  source: str | None = None,
) -> None:
  """Writes patients in the layout of LUNA16, evenly over its 10 subsets.

  Beside LUNA16's files it writes transforms/*.tfm, the true transform of each
  scan (ITK's format), and phantom.json, the settings and the scan ids by index.
  `load_truth` reads them.

  Args:
    folder: made if it is not there.
    scans: number of patients; patient i is the same for any number.
    size: voxels [x, y, z], as for `make_patient`.
    seed: decides every patient.
    variation: how much patients differ.
    source: path of a real scan to bend instead of the template. Unless the
      variation asks for nodules there are then no lung masks, and
      annotations.csv and candidates_V2.csv have no rows.

  Raises:
    errors.UserError: the size does not make a scan, or the lungs of the real
      scan, which nodules lie in, are not found.
    reader.ScanError: the real scan cannot be used.
  """
  _check_size(size, variation or Variation())
  if source is None:
    make = functools.partial(make_patient, seed)
  else:
    scan = reader.read_scan(source)
    lungs = None
    if variation and variation.nodules[1]:
      lungs = _find_lungs(source, scan)
    make = functools.partial(bend_scan, scan, seed, lungs=lungs)
  for name in (
    *(f'subset{subset}' for subset in range(_SUBSETS)),
    luna16.LUNG_MASK_FOLDER,
    TRANSFORM_FOLDER,
  ):
    os.makedirs(os.path.join(folder, name), exist_ok=True)
  scan_ids, annotations, candidates = [], [], []
  for index in tqdm.trange(scans, desc='scans', unit='scan', disable=None):
    one = make(index, size, variation)
    _write_patient(folder, f'subset{index % _SUBSETS}', one)
    scan_ids.append(one.scan_id)
    for nodule in one.nodules:
      row = [one.scan_id, *(f'{value:.4f}' for value in nodule.centre)]
      annotations.append([*row, f'{nodule.diameter:.4f}'])
      candidates.append([*row, 1])
    for centre in one.false_candidates:
      row = [one.scan_id, *(f'{value:.4f}' for value in centre)]
      candidates.append([*row, 0])
  start = ['seriesuid', 'coordX', 'coordY', 'coordZ']
  for name, rows in (
    (luna16.ANNOTATIONS_FILE, [[*start, 'diameter_mm'], *annotations]),
    (luna16.CANDIDATES_FILE, [[*start, 'class'], *candidates]),
  ):
    path = os.path.join(folder, name)
    with open(path, 'w', newline='', encoding='utf-8') as file:
      csv.writer(file, lineterminator='\n').writerows(rows)
  settings = {
    'seed': seed,
    'size': [int(side) for side in size],
    'source': source,
    'variation': variation and dataclasses.asdict(variation),
    'scan_ids': scan_ids,
  }
  with open(os.path.join(folder, SETTINGS_FILE), 'w', encoding='utf-8') as file:
    json.dump(settings, file, indent=2)


def load_truth(
  folder: str, scan_ids: Collection[str] | None = None
) -> dict[str, bend_lib.Truth]:
  """Reads where the anatomy of the scans of a folder truly lies, by scan id.

  Args:
    folder: that `write_luna16` wrote.
    scan_ids: the scans wanted; None takes all of the folder.

  Raises:
    errors.UserError: the folder was not written by `write_luna16`.
    reader.ScanError: the header of a scan cannot be read.
  """
  truths = {}
  for scan in luna16.find_scans(folder):
    if scan_ids is not None and scan.scan_id not in scan_ids:
      continue
    path = os.path.join(folder, TRANSFORM_FOLDER, f'{scan.scan_id}.tfm')
    if not os.path.exists(path):
      raise errors.UserError(
        f'no {path}; the truth is known only of folders made by'
        ' tools/make_phantom.py'
      )
    truths[scan.scan_id] = bend_lib.Truth(
      reader.read_geometry(scan.path), bend_lib.read(path)
    )
  return truths


def _find_lungs(path, scan) -> nodule_lib.Lungs:
  lungs = real_lungs.find(scan.hu, scan.geometry)
  if lungs is None or not len(lungs.vessels):
    raise errors.UserError(
      f'{path}: no lungs with vessels found to put nodules into; give a chest'
      ' CT with both lungs, or no nodules'
    )
  return lungs


def _write_patient(folder, subset, patient) -> None:
  name = f'{patient.scan_id}.mhd'
  if patient.lung_mask is not None:
    path = os.path.join(folder, luna16.LUNG_MASK_FOLDER, name)
    reader.write_scan(path, patient.lung_mask, patient.geometry)
  path = os.path.join(folder, TRANSFORM_FOLDER, f'{patient.scan_id}.tfm')
  bend_lib.write(path, patient.truth.bend)
  path = os.path.join(folder, subset, name)
  reader.write_scan(path, patient.hu, patient.geometry)


def _scan_id(original, seed, index, size, variation) -> str:
  """Returns a UID under 2.25, the root of UIDs made from UUIDs."""
  name = f'{original} {seed} {index} {size} {variation}'
  if variation.attached:
    name += f' attached {variation.attached}'
  return f'2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}'


def _check_size(size, variation) -> list[int]:
  """Returns a size as integers."""
  sides = [int(side) for side in size]
  given = sides[:2] if variation.slice_thickness and not sides[2] else sides
  if min(given) < 2 or np.prod(given, dtype=float) > _MOST_VOXELS:
    raise errors.UserError(
      f'size {",".join(map(str, sides))} does not make a scan; give voxels'
      ' X,Y,Z of 2 or more each (Z may be 0 with a range of slice thickness)'
      f' and at most {_MOST_VOXELS} together'
    )
  return sides


def _draw_geometry(rng, size, variation) -> geometry_lib.Geometry:
  in_plane = rng.uniform(*variation.field_of_view)
  length = rng.uniform(*variation.length)
  middle = rng.uniform(-150.0, 150.0, size=3)
  size = _check_size(size, variation)
  if variation.slice_thickness:
    thickness = rng.uniform(*variation.slice_thickness)
    size[2] = size[2] or max(1, round(length / thickness))
    _check_size(size, variation)
  else:
    thickness = length / max(size[2], 1)
  spacing = np.array([in_plane / max(size[:2])] * 2 + [thickness])
  origin = middle - spacing * (np.array(size) - 1) / 2
  return geometry_lib.Geometry(
    tuple(size), tuple(spacing.tolist()), tuple(origin.tolist())
  )


def _draw_truth(rng, geometry, centre, variation) -> bend_lib.Truth:
  bend = bend_lib.draw(
    rng,
    geometry,
    centre,
    translation_sd=variation.translation_sd,
    rotation_sd=variation.rotation_sd,
    scale=variation.scale,
    displacement_sd=variation.displacement_sd,
  )
  return bend_lib.Truth(geometry, bend)


def _draw_nodules(rng, truth, lungs, variation):
  """Returns the nodules of a patient, and vessels as false candidates."""
  nodules = nodule_lib.draw(
    rng,
    truth,
    lungs,
    variation.nodules,
    variation.diameter,
    variation.attached,
  )
  return nodules, candidate_lib.draw_vessels(rng, truth, lungs, nodules)


def _sample(volume, voxels, mode) -> np.ndarray:
  """Interpolates [x, y, z] linearly at voxels [3, ...] in order z, y, x."""
  return ndimage.map_coordinates(
    volume.T,
    voxels,
    output=np.float32,
    order=1,
    mode=mode,
    cval=_PADDING,
    prefilter=False,
  )


def _sample_mask(mask, voxels, mode) -> np.ndarray:
  """Takes labels [x, y, z] at the nearest voxels, as `_sample`."""
  return ndimage.map_coordinates(
    mask.T, voxels, output=np.uint8, order=0, mode=mode
  )


def _with_noise(rng, values, sigma) -> np.ndarray:
  """Adds noise that neighbours in-plane share, and rounds to int16."""
  slices, height, width = values.shape
  noise = rng.standard_normal((slices, height + 1, width + 1), np.float32)
  noise = noise[:, 1:] + noise[:, :-1]
  noise = noise[..., 1:] + noise[..., :-1]
  # A sum of four has twice the sd of one.
  values += noise * np.float32(sigma / 2)
  np.clip(values, _PADDING, 3071, out=values)
  return np.rint(values, out=values).astype(np.int16)
