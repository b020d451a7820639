"""Trees reach all their places, keep together and follow Murray's law."""

import collections

import numpy as np
import pytest

from transvw_tf2.scans.anatomy import branching


@pytest.fixture(scope='module')
def cloud():
  return np.random.default_rng(0).uniform(-50.0, 50.0, (77, 3))


@pytest.fixture(scope='module')
def tree(cloud):
  return branching.grow(cloud, np.array([-90.0, 0.0, 0.0]), 6.0)


def test_the_twigs_end_at_the_places(cloud, tree):
  starts = {tuple(branch.start) for branch in tree}
  twigs = [branch for branch in tree if tuple(branch.end) not in starts]
  assert len(tree) == 2 * len(cloud) - 1
  np.testing.assert_allclose(
    np.array(sorted(tuple(branch.end) for branch in twigs)),
    np.array(sorted(map(tuple, cloud))),
    atol=1e-9,
  )


def test_every_branch_starts_where_its_parent_ends(tree):
  np.testing.assert_array_equal(tree[0].start, [-90.0, 0.0, 0.0])
  ends = {tuple(branch.end): branch.radius for branch in tree}
  for branch in tree[1:]:
    assert ends[tuple(branch.start)] == branch.parent_radius


def test_children_share_the_cube_of_the_radius(tree):
  children = collections.defaultdict(list)
  for branch in tree[1:]:
    children[tuple(branch.start)].append(branch.radius)
  assert tree[0].radius == pytest.approx(6.0)
  for branch in tree:
    found = children.get(tuple(branch.end))
    if found:
      assert len(found) == 2
      assert sum(one**3 for one in found) == pytest.approx(branch.radius**3)


def test_places_that_coincide_do_not_hang():
  tree = branching.grow(np.zeros((8, 3)), np.zeros(3), 2.0)
  assert len(tree) == 15
