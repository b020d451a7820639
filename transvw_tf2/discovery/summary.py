"""What discovery needs to know of a scan: the result of reading it once."""

import dataclasses

import numpy as np

from transvw_tf2 import schema
from transvw_tf2.discovery import descriptors
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import places
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import lung_box
from transvw_tf2.scans import reader


@dataclasses.dataclass(frozen=True)
class ScanSummary:
  """One scan as discovery sees it.

  Attributes:
    scan_id: id of the scan.
    split: `schema.TRAIN` or `schema.VALIDATION`.
    size: voxels [x, y, z].
    spacing: mm [x, y, z].
    thumbnail: float32 (32, 32, 16) [x, y, z], HU scaled to [0, 1].
    candidates: int32 (n, 3), places that passed the soft-tissue filter, in the
      order drawn; none for validation scans, which are never a reference.
    border_reduced: whether the borders did not fit and were reduced; they are
      of references, so never of validation scans.
    filter_relaxed: whether no place passed the soft-tissue filter, and those
      with the least soft tissue were kept; only where borders were reduced.
    lungs: where they lie; None where the frame does not need them, and where
      there are none.
  """

  scan_id: str
  split: str
  size: tuple[int, int, int]
  spacing: tuple[float, float, float]
  thumbnail: np.ndarray
  candidates: np.ndarray
  border_reduced: bool
  filter_relaxed: bool
  lungs: lung_box.LungBox | None = None


def summarise_scan(
  scan_id: str,
  split: str,
  scan: reader.Scan,
  settings: settings_lib.Settings,
) -> ScanSummary:
  """Summarises a scan; the same scan and seed always give the same summary."""
  size = scan.geometry.size
  candidates, reduced, relaxed = np.zeros((0, 3), np.int32), False, False
  if split == schema.TRAIN:
    place_range = places.place_range(
      size, settings.xy_border, settings.z_border
    )
    reduced = place_range.reduced
    candidates, relaxed = places.draw_candidates(
      scan.hu,
      place_range,
      np.random.default_rng([settings.seed, schema.stable_hash(scan_id)]),
      tries=settings.tries,
      max_soft_tissue=settings.max_soft_tissue,
    )
  return ScanSummary(
    scan_id=scan_id,
    split=split,
    size=size,
    spacing=scan.geometry.spacing,
    thumbnail=descriptors.make_thumbnail(scan.hu),
    candidates=candidates,
    border_reduced=reduced,
    filter_relaxed=relaxed,
    lungs=lung_box.find(scan.hu, scan.geometry.spacing)
    if settings.frame == frames.LUNG
    else None,
  )
