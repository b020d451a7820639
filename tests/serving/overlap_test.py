"""Boxes of overlapping cubes by brute force."""

import itertools
import math

import numpy as np
import pytest

from transvw_tf2.serving import overlap

_CUBE = (64, 64, 32)


def _grid(size, stride):
  return [
    np.r_[np.arange(0, voxels - side, step), voxels - side]
    for voxels, side, step in zip(size, _CUBE, stride, strict=True)
  ]


@pytest.mark.parametrize(
  ('size', 'stride'),
  [
    ((512, 512, 250), (32, 32, 16)),
    ((512, 512, 251), (32, 32, 16)),  # the last cube at an odd place
    ((300, 301, 120), (7, 8, 9)),
    ((512, 512, 250), (64, 64, 32)),
    ((64, 64, 32), (1, 1, 1)),
    ((200, 70, 40), (8, 8, 8)),
  ],
)
@pytest.mark.parametrize('most_z', [1, 8])
def test_each_cube_is_in_one_box(size, stride, most_z):
  corners = _grid(size, stride)
  boxes = overlap.cut_boxes(corners, _CUBE, most_z)
  found = [cube for box in boxes for cube in itertools.product(*box)]
  want = itertools.product(*map(range, map(len, corners)))
  assert sorted(found) == list(want)
  for box in boxes:
    assert len(box[2]) <= most_z
    lengths = []
    for starts, numbers, side in zip(corners, box, _CUBE, strict=True):
      assert (np.diff(starts[numbers]) > 0).all()
      assert len(np.unique(starts[numbers] % 2)) == 1
      span = starts[numbers][-1] - starts[numbers][0] + side
      lengths.append(span + 10 * (len(numbers) - 1))
    assert math.prod(lengths) <= 2**23


@pytest.mark.parametrize(
  ('size', 'stride', 'worth'),
  [
    ((512, 512, 250), (32, 32, 16), True),
    ((160, 160, 80), (32, 32, 16), True),
    ((512, 512, 250), (8, 8, 8), True),
    ((512, 512, 250), (32, 32, 32), True),
    ((512, 512, 250), (64, 64, 32), False),
    ((512, 512, 250), (60, 60, 30), False),
    ((64, 64, 32), (32, 32, 16), False),  # one cube
  ],
)
def test_shares_where_cubes_overlap(size, stride, worth):
  corners = _grid(size, stride)
  boxes = overlap.cut_boxes(corners, _CUBE, 8)
  assert overlap.saves_work(boxes, corners, _CUBE) == worth
