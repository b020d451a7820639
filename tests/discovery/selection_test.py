"""Words and instances against brute force."""

import dataclasses

import numpy as np
import pytest

from tests.discovery import scan_rows
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import selection


def test_each_reference_is_used_once_and_places_keep_their_distance():
  scans = [scan_rows.make_row(f't{index}') for index in range(30)]
  words = selection.choose_words(
    scans, scan_rows.make_settings(words=30, min_distance=12)
  )
  assert [one.word for one in words] == list(range(len(words)))
  assert len({one.scan_id for one in words}) == len(words)
  by_id = {scan.scan_id: scan for scan in scans}
  for index, word in enumerate(words):
    candidates = by_id[word.scan_id].candidates.tolist()
    assert list(word.place) in candidates
    earlier = [one.place for one in words[:index]]

    def far(place, earlier=earlier):
      return all(
        np.subtract(place, one) @ np.subtract(place, one) >= 144
        for one in earlier
      )

    # The first that is far enough from all earlier places.
    assert next(one for one in candidates if far(one)) == list(word.place)
  # Those left out have no place far enough from the words before them.
  assert 5 < len(words) < 30


def test_a_distance_of_just_the_least_is_enough():
  scans = [
    scan_rows.make_row('a', candidates=[(0, 0, 0)]),
    scan_rows.make_row('b', candidates=[(3, 4, 0)]),
  ]
  assert (
    len(selection.choose_words(scans, scan_rows.make_settings(min_distance=5)))
    == 2
  )
  assert (
    len(
      selection.choose_words(scans, scan_rows.make_settings(min_distance=5.01))
    )
    == 1
  )


def test_a_place_too_close_does_not_spoil_the_next():
  """The published script never took its flag back."""
  scans = [
    scan_rows.make_row('a', candidates=[(0, 0, 0)]),
    scan_rows.make_row('b', candidates=[(1, 0, 0), (9, 0, 0)]),
  ]
  found = [
    [
      (one.scan_id, one.place)
      for one in selection.choose_words(
        scans, scan_rows.make_settings(seed=seed)
      )
    ]
    for seed in range(8)
  ]
  assert [('a', (0, 0, 0)), ('b', (9, 0, 0))] in found
  # The other way round, the only place of a is too close to that of b.
  assert [('b', (1, 0, 0))] in found
  assert len({tuple(one) for one in found}) == 2


def test_scans_without_a_candidate_are_no_reference():
  scans = [
    scan_rows.make_row('a', candidates=[]),
    scan_rows.make_row('b'),
    scan_rows.make_row('c', candidates=[]),
  ]
  words = selection.choose_words(scans, scan_rows.make_settings())
  assert [one.scan_id for one in words] == ['b']


def test_references_come_in_an_order_that_the_seed_decides():
  scans = [scan_rows.make_row(f't{index}') for index in range(8)]
  order = {
    seed: [
      one.scan_id
      for one in selection.choose_words(
        scans, scan_rows.make_settings(words=8, seed=seed, min_distance=0)
      )
    ]
    for seed in range(5)
  }
  assert all(sorted(one) == sorted(order[0]) for one in order.values())
  assert len({tuple(one) for one in order.values()}) > 1
  again = selection.choose_words(
    scans[::-1], scan_rows.make_settings(words=8, seed=3, min_distance=0)
  )
  assert [one.scan_id for one in again] == order[3]


def test_no_more_words_than_wanted():
  scans = [scan_rows.make_row(f't{index}') for index in range(8)]
  for wanted in (1, 3, 8):
    words = selection.choose_words(
      scans, scan_rows.make_settings(words=wanted, min_distance=0)
    )
    assert len(words) == wanted


def _check_instances(found, scans, descriptors, settings):
  """Checks every instance against a search by hand."""
  by_id = {scan.scan_id: scan for scan in scans}
  for word in found.words:
    for split, count, resolutions in (
      (schema.TRAIN, settings.instances, 3),
      (schema.VALIDATION, settings.validation_instances, 1),
    ):
      fitting = [
        scan
        for scan in scans
        if scan.split == split
        and all(
          corner + cube <= side
          for corner, cube, side in zip(
            word.place, (64, 64, 32), scan.size, strict=True
          )
        )
      ]
      distances = {
        scan.scan_id: float(
          np.linalg.norm(
            descriptors[scan.scan_id].astype(float)
            - descriptors[word.scan_id].astype(float)
          )
        )
        for scan in fitting
      }
      nearest = sorted(distances, key=distances.get)[:count]
      mine = [
        one
        for one in found.instances
        if one.word == word.word and one.split == split
      ]
      assert [(one.rank, one.resolution, one.scan_id) for one in mine] == [
        (rank, resolution, scan_id)
        for rank, scan_id in enumerate(nearest)
        for resolution in range(resolutions)
      ]
      for one in mine:
        assert one.distance == pytest.approx(distances[one.scan_id], abs=5.1e-7)
        side = by_id[one.scan_id].size
        assert all(
          corner >= 0 and corner + length <= limit
          for corner, length, limit in zip(
            one.origin, one.size, side, strict=True
          )
        )
        assert one.origin[2] == word.place[2]
        if one.resolution == 0:
          assert (one.origin, one.size) == (word.place, (64, 64, 32))
        else:
          assert 50 <= one.size[0] == one.size[1] < 80
          assert one.size[2] == 32
          shift = np.subtract(one.origin, word.place)[:2]
          assert np.all((shift >= -10) & (shift < 10))


def test_instances_are_the_nearest_patients():
  scans, descriptors = scan_rows.make_collection()
  settings = scan_rows.make_settings()
  found = selection.build_vocabulary(scans, descriptors, settings)
  assert len(found.words) == 4
  _check_instances(found, scans, descriptors, settings)
  # Every word has all its cubes: none is lost at an end.
  assert len(found.instances) == 4 * (3 * 5 + 2)
  assert found.notes == ()
  # The reference is its own nearest.
  for word in found.words:
    first = next(
      one
      for one in found.instances
      if (one.split, one.word) == (schema.TRAIN, word.word)
    )
    assert (first.rank, first.scan_id, first.distance) == (0, word.scan_id, 0.0)


def test_patients_whose_scan_is_too_small_are_passed_over():
  scans, descriptors = scan_rows.make_collection(train=10, validation=4)
  small = {'t1', 't4', 't7', 'v2'}
  scans = [
    dataclasses.replace(scan, size=(64, 64, 32), candidates=np.zeros((0, 3)))
    if scan.scan_id in small
    else scan
    for scan in scans
  ]
  settings = scan_rows.make_settings(instances=6, validation_instances=3)
  found = selection.build_vocabulary(scans, descriptors, settings)
  _check_instances(found, scans, descriptors, settings)
  assert small.isdisjoint(
    one.scan_id for one in found.instances if max(one.origin) > 0
  )
  # Those too small that are nearer than the last patient taken.
  nearer = 0
  for word in found.words:
    distances = {
      scan.scan_id: np.linalg.norm(
        descriptors[scan.scan_id].astype(float)
        - descriptors[word.scan_id].astype(float)
      )
      for scan in scans
    }
    for split in (schema.TRAIN, schema.VALIDATION):
      last = max(
        distances[one.scan_id]
        for one in found.instances
        if (one.word, one.split) == (word.word, split)
      )
      nearer += sum(
        distances[scan.scan_id] < last
        for scan in scans
        if scan.split == split and scan.scan_id in small
      )
  assert nearer > 0
  assert found.notes == (
    f'{nearer} times a patient was passed over for the next: the scan does not'
    ' hold the cube of the word',
  )


def test_k_beyond_the_patients_takes_all_and_says_so():
  scans, descriptors = scan_rows.make_collection(train=3, validation=1)
  settings = scan_rows.make_settings(
    words=9, instances=5, validation_instances=2
  )
  found = selection.build_vocabulary(scans, descriptors, settings)
  _check_instances(found, scans, descriptors, settings)
  assert len(found.instances) == 3 * (3 * 3 + 1)
  words, train, validation = found.notes
  assert words.startswith('3 words found of 9 wanted')
  assert '3 of 3 have a place' in words
  assert train.startswith('3 to 3 train patients per word of 5 wanted')
  assert validation.startswith('1 to 1 validation patients per word of 2')


@pytest.mark.parametrize('wanted', [0, 3])
def test_without_validation_scans_or_wish(wanted):
  scans, descriptors = scan_rows.make_collection(validation=0 if wanted else 3)
  settings = scan_rows.make_settings(validation_instances=wanted)
  found = selection.build_vocabulary(scans, descriptors, settings)
  assert {one.split for one in found.instances} == {schema.TRAIN}
  assert len(found.notes) == (1 if wanted else 0)


@pytest.mark.parametrize('instances', [1, 2])
def test_the_reference_comes_before_scans_that_are_the_same(instances):
  scans = [
    scan_rows.make_row(name, candidates=[(1, 2, 3)] if name == 'b' else [])
    for name in ('a', 'b', 'c')
  ]
  same = np.ones(4, np.float32)
  found = selection.build_vocabulary(
    scans,
    {'a': same, 'b': same, 'c': same},
    scan_rows.make_settings(words=1, instances=instances),
  )
  ranked = [one.scan_id for one in found.instances if one.resolution == 0]
  assert ranked == ['b', 'a'][:instances]


def test_the_order_in_which_scans_come_does_not_matter():
  scans, descriptors = scan_rows.make_collection(train=12, validation=5)
  settings = scan_rows.make_settings(words=12)
  found = selection.build_vocabulary(scans, descriptors, settings)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    shuffled = [scans[index] for index in rng.permutation(len(scans))]
    turned = {scan.scan_id: descriptors[scan.scan_id] for scan in shuffled}
    again = selection.build_vocabulary(shuffled, turned, settings)
    assert again == found
  assert found.instances == tuple(sorted(found.instances))
  other = selection.build_vocabulary(
    scans, descriptors, dataclasses.replace(settings, seed=2)
  )
  assert other.instances != found.instances


def test_a_box_depends_on_its_own_scan_word_and_resolution_alone():
  """One scan more leaves the boxes of the others as they were."""
  scans, descriptors = scan_rows.make_collection()
  settings = scan_rows.make_settings(words=1, instances=20)
  found = selection.build_vocabulary(scans, descriptors, settings)
  more = [*scans, scan_rows.make_row('u', candidates=[])]
  word = found.words[0]
  train = [scan for scan in more if scan.split == schema.TRAIN]
  (reference,) = (one for one in train if one.scan_id == word.scan_id)
  again, _ = selection.find_instances(
    word,
    reference,
    train,
    np.stack([descriptors.get(one.scan_id, np.zeros(6)) for one in train]),
    descriptors[word.scan_id],
    settings,
  )
  boxes = {
    (one.scan_id, one.resolution): (one.origin, one.size) for one in again
  }
  mine = [one for one in found.instances if one.split == schema.TRAIN]
  assert len(boxes) == len(mine) + 3
  for one in mine:
    assert boxes[one.scan_id, one.resolution] == (one.origin, one.size)
  # And the two random resolutions differ.
  assert any(boxes[f't{i}', 1] != boxes[f't{i}', 2] for i in range(8))


def test_in_the_frame_of_the_lungs_a_place_keeps_its_share_of_them():
  scans, descriptors = scan_rows.make_lung_collection()
  settings = scan_rows.make_settings(
    words=9, instances=9, frame='lung', min_distance=0
  )
  found = selection.build_vocabulary(scans, descriptors, settings)
  by_id = {scan.scan_id: scan for scan in scans}
  assert len(found.words) == 7  # all but t4 and t6
  assert 't4' not in {word.scan_id for word in found.words}
  assert {one.scan_id for one in found.instances}.isdisjoint({'t4', 'v1'})
  words = {word.word: word for word in found.words}
  seen = set()
  for one in found.instances:
    reference, scan = by_id[words[one.word].scan_id], by_id[one.scan_id]
    if one.scan_id == reference.scan_id and one.resolution == 0:
      # Native voxels: just the cube of the other frame.
      assert (one.origin, one.size) == (words[one.word].place, (64, 64, 32))
    assert min(one.origin) >= 0
    assert np.all(np.add(one.origin, one.size) <= scan.size)
    if one.resolution:
      # In voxels of the reference, the side is 50 to 79 and the same in x and
      # y; rounding moves each end by half a voxel.
      side = np.array(one.size) * scan.spacing / reference.spacing
      loose = np.divide(scan.spacing, reference.spacing)
      assert 50 - loose[0] <= side[0] <= 79 + loose[0]
      assert abs(side[0] - side[1]) <= 2 * loose[0]
      assert abs(side[2] - 32) <= loose[2]
      continue
    seen.add((one.scan_id == reference.scan_id, scan.scan_id))
    for axis in range(3):
      low, high = reference.lungs.low[axis], reference.lungs.high[axis]
      to_low, to_high = scan.lungs.low[axis], scan.lungs.high[axis]
      centre = words[one.word].place[axis] + (32, 32, 16)[axis]
      if axis == 2 and 't5' in (scan.scan_id, reference.scan_id):
        wanted = to_high - (
          (high - centre) * reference.spacing[2] / scan.spacing[2]
        )
      else:
        share = (centre - low) / (high - low)
        wanted = to_low * (1 - share) + to_high * share
      assert abs(one.origin[axis] + one.size[axis] / 2 - wanted) <= 0.5001
      mm = one.size[axis] * scan.spacing[axis]
      wanted_mm = (64, 64, 32)[axis] * reference.spacing[axis]
      assert abs(mm - wanted_mm) <= scan.spacing[axis] * 1.0001
  assert (False, 't5') in seen and (True, 't5') in seen


def test_patients_without_lungs_or_room_are_counted_and_told():
  scans, descriptors = scan_rows.make_lung_collection()
  settings = scan_rows.make_settings(words=3, instances=4, frame='lung')
  found = selection.build_vocabulary(scans, descriptors, settings)
  without, over = found.notes
  assert without == (
    '2 of 12 scans are passed over: no lungs were found in them, or they are'
    ' cut at both ends'
  )
  assert over.endswith(
    ' times a patient was passed over for the next: the scan does not hold the'
    ' cube of the word'
  )
  for word in found.words:
    for split, wanted in ((schema.TRAIN, 4), (schema.VALIDATION, 2)):
      ranks = [
        one.rank
        for one in found.instances
        if (one.word, one.split, one.resolution) == (word.word, split, 0)
      ]
      assert ranks == list(range(wanted))


def test_no_lungs_at_all_is_an_error():
  scans, descriptors = scan_rows.make_collection()
  with pytest.raises(errors.UserError, match='no lungs were found in any of'):
    selection.build_vocabulary(
      scans, descriptors, scan_rows.make_settings(frame='lung')
    )


def test_no_word_at_all_is_an_error():
  scans = [
    scan_rows.make_row('a', candidates=[]),
    scan_rows.make_row('b', candidates=[]),
  ]
  descriptors = {'a': np.zeros(2), 'b': np.zeros(2)}
  with pytest.raises(errors.UserError, match='no visual word found in 2 train'):
    selection.build_vocabulary(scans, descriptors, scan_rows.make_settings())
