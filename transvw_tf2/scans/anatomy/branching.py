"""Grows trees of vessels and airways that fill a lung.

A branch heads for the middle of the tissue that it feeds, goes part of the way
and splits in two, each child with one half of the tissue, as in the lung model
of Tawhai et al. (J Appl Physiol 97, 2004). Calibres follow Murray's law: the
cube of the radius is shared out like the tissue.
"""

import dataclasses

import numpy as np

# Share of the way to the middle of its tissue that a branch goes.
_SHARE_OF_WAY = 0.42


@dataclasses.dataclass(frozen=True)
class Branch:
  """A straight branch: ends (3,) in mm, radius in mm, that of its parent."""

  start: np.ndarray
  end: np.ndarray
  radius: float
  parent_radius: float


def grow(cloud, start, radius: float) -> list[Branch]:
  """Grows a tree.

  Args:
    cloud: float (n, 3) mm, places that the tree reaches, one per twig.
    start: float (3,) mm, where the stem begins.
    radius: of the stem, mm.

  Returns:
    Branches, parents before children.
  """
  cloud = np.asarray(cloud, float)
  twig = radius / len(cloud) ** (1 / 3)
  waiting = [(cloud, np.asarray(start, float), radius)]
  branches = []
  while waiting:
    cloud, start, parent_radius = waiting.pop(0)
    way = cloud.mean(0) - start
    if len(cloud) > 1:
      way = way * _SHARE_OF_WAY
    radius = twig * len(cloud) ** (1 / 3)
    branches.append(Branch(start, start + way, radius, parent_radius))
    if len(cloud) > 1:
      for half in _halve(cloud, way):
        waiting.append((half, start + way, radius))
  return branches


def _halve(cloud, way):
  """Splits places by a plane along a branch, across their largest extent."""
  heading = way / max(np.linalg.norm(way), 1e-6)
  offsets = cloud - cloud.mean(0)
  across = offsets - np.outer(offsets @ heading, heading)
  axis = np.linalg.eigh(across.T @ across)[1][:, -1]
  # Ranks, not signs: no half is ever empty.
  order = np.argsort(across @ axis, kind='stable')
  middle = len(cloud) // 2
  return cloud[order[:middle]], cloud[order[middle:]]
