"""Words and instances against brute force; files there and back."""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import vocabulary

_SIZE = (120, 110, 60)


def _settings(**changes):
  return vocabulary.Settings(
    **{'words': 4, 'instances': 5, 'validation_instances': 2} | changes
  )


def _row(scan_id, split=schema.TRAIN, size=_SIZE, candidates=None, seed=0):
  if candidates is None:
    rng = np.random.default_rng([seed, schema.stable_hash(scan_id)])
    candidates = rng.integers(0, (50, 40, 25), (20, 3))
  return vocabulary.ScanRow(
    scan_id, split, size, np.asarray(candidates, np.int32).reshape(-1, 3)
  )


def _collection(train=8, validation=3, seed=0):
  scans = [_row(f't{index}') for index in range(train)]
  scans += [
    _row(f'v{index}', schema.VALIDATION, candidates=[])
    for index in range(validation)
  ]
  rng = np.random.default_rng(seed)
  descriptors = {
    scan.scan_id: rng.normal(size=6).astype(np.float32) for scan in scans
  }
  return scans, descriptors


def test_each_reference_is_used_once_and_places_keep_their_distance():
  scans = [_row(f't{index}') for index in range(30)]
  words = vocabulary.choose_words(scans, _settings(words=30, min_distance=12))
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
  scans = [_row('a', candidates=[(0, 0, 0)]), _row('b', candidates=[(3, 4, 0)])]
  assert len(vocabulary.choose_words(scans, _settings(min_distance=5))) == 2
  assert len(vocabulary.choose_words(scans, _settings(min_distance=5.01))) == 1


def test_a_place_too_close_does_not_spoil_the_next():
  """The published script never took its flag back."""
  scans = [
    _row('a', candidates=[(0, 0, 0)]),
    _row('b', candidates=[(1, 0, 0), (9, 0, 0)]),
  ]
  found = [
    [
      (one.scan_id, one.place)
      for one in vocabulary.choose_words(scans, _settings(seed=seed))
    ]
    for seed in range(8)
  ]
  assert [('a', (0, 0, 0)), ('b', (9, 0, 0))] in found
  # The other way round, the only place of a is too close to that of b.
  assert [('b', (1, 0, 0))] in found
  assert len({tuple(one) for one in found}) == 2


def test_scans_without_a_candidate_are_no_reference():
  scans = [_row('a', candidates=[]), _row('b'), _row('c', candidates=[])]
  words = vocabulary.choose_words(scans, _settings())
  assert [one.scan_id for one in words] == ['b']


def test_references_come_in_an_order_that_the_seed_decides():
  scans = [_row(f't{index}') for index in range(8)]
  order = {
    seed: [
      one.scan_id
      for one in vocabulary.choose_words(
        scans, _settings(words=8, seed=seed, min_distance=0)
      )
    ]
    for seed in range(5)
  }
  assert all(sorted(one) == sorted(order[0]) for one in order.values())
  assert len({tuple(one) for one in order.values()}) > 1
  again = vocabulary.choose_words(
    scans[::-1], _settings(words=8, seed=3, min_distance=0)
  )
  assert [one.scan_id for one in again] == order[3]


def test_no_more_words_than_wanted():
  scans = [_row(f't{index}') for index in range(8)]
  for wanted in (1, 3, 8):
    words = vocabulary.choose_words(
      scans, _settings(words=wanted, min_distance=0)
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
  scans, descriptors = _collection()
  settings = _settings()
  found = vocabulary.build_vocabulary(scans, descriptors, settings)
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
  scans, descriptors = _collection(train=10, validation=4)
  small = {'t1', 't4', 't7', 'v2'}
  scans = [
    dataclasses.replace(scan, size=(64, 64, 32), candidates=np.zeros((0, 3)))
    if scan.scan_id in small
    else scan
    for scan in scans
  ]
  settings = _settings(instances=6, validation_instances=3)
  found = vocabulary.build_vocabulary(scans, descriptors, settings)
  _check_instances(found, scans, descriptors, settings)
  assert small.isdisjoint(
    one.scan_id for one in found.instances if max(one.origin) > 0
  )
  assert found.notes == ()


def test_k_beyond_the_patients_takes_all_and_says_so():
  scans, descriptors = _collection(train=3, validation=1)
  settings = _settings(words=9, instances=5, validation_instances=2)
  found = vocabulary.build_vocabulary(scans, descriptors, settings)
  _check_instances(found, scans, descriptors, settings)
  assert len(found.instances) == 3 * (3 * 3 + 1)
  words, train, validation = found.notes
  assert words.startswith('3 words found of 9 wanted')
  assert '3 of 3 have a place' in words
  assert train.startswith('3 to 3 train patients per word of 5 wanted')
  assert validation.startswith('1 to 1 validation patients per word of 2')


@pytest.mark.parametrize('wanted', [0, 3])
def test_without_validation_scans_or_wish(wanted):
  scans, descriptors = _collection(validation=0 if wanted else 3)
  settings = _settings(validation_instances=wanted)
  found = vocabulary.build_vocabulary(scans, descriptors, settings)
  assert {one.split for one in found.instances} == {schema.TRAIN}
  assert len(found.notes) == (1 if wanted else 0)


@pytest.mark.parametrize('instances', [1, 2])
def test_the_reference_comes_before_scans_that_are_the_same(instances):
  scans = [
    _row(name, candidates=[(1, 2, 3)] if name == 'b' else [])
    for name in ('a', 'b', 'c')
  ]
  same = np.ones(4, np.float32)
  found = vocabulary.build_vocabulary(
    scans,
    {'a': same, 'b': same, 'c': same},
    _settings(words=1, instances=instances),
  )
  ranked = [one.scan_id for one in found.instances if one.resolution == 0]
  assert ranked == ['b', 'a'][:instances]


def test_the_order_in_which_scans_come_does_not_matter():
  scans, descriptors = _collection(train=12, validation=5)
  settings = _settings(words=12)
  found = vocabulary.build_vocabulary(scans, descriptors, settings)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    shuffled = [scans[index] for index in rng.permutation(len(scans))]
    turned = {scan.scan_id: descriptors[scan.scan_id] for scan in shuffled}
    again = vocabulary.build_vocabulary(shuffled, turned, settings)
    assert again == found
  assert found.instances == tuple(sorted(found.instances))
  other = vocabulary.build_vocabulary(
    scans, descriptors, dataclasses.replace(settings, seed=2)
  )
  assert other.instances != found.instances


def test_a_box_depends_on_its_own_scan_word_and_resolution_alone():
  """One scan more leaves the boxes of the others as they were."""
  scans, descriptors = _collection()
  settings = _settings(words=1, instances=20)
  found = vocabulary.build_vocabulary(scans, descriptors, settings)
  more = [*scans, _row('u', candidates=[])]
  word = found.words[0]
  train = [scan for scan in more if scan.split == schema.TRAIN]
  again = vocabulary.find_instances(
    word,
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


def test_no_word_at_all_is_an_error():
  scans = [_row('a', candidates=[]), _row('b', candidates=[])]
  descriptors = {'a': np.zeros(2), 'b': np.zeros(2)}
  with pytest.raises(errors.UserError, match='no visual word found in 2 train'):
    vocabulary.build_vocabulary(scans, descriptors, _settings())


def _write(folder, train=8):
  scans, descriptors = _collection(train=train)
  found = vocabulary.build_vocabulary(scans, descriptors, _settings())
  vocabulary.write_vocabulary(os.fspath(folder), found)
  return found


def test_files_there_and_back(tmp_path):
  found = _write(tmp_path, train=3)
  assert found.notes
  assert vocabulary.read_vocabulary(os.fspath(tmp_path)) == found
  assert sorted(os.listdir(tmp_path)) == ['instances.csv', 'vocabulary.json']


def test_files_are_the_same_bytes_each_time(tmp_path):
  contents = []
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    _write(tmp_path / name)
    vocabulary.write_descriptors(
      os.fspath(tmp_path / name), ['a', 'b'], np.ones((2, 3))
    )
    contents.append(
      {one.name: one.read_bytes() for one in (tmp_path / name).iterdir()}
    )
  assert len(contents[0]) == 3
  assert contents[0] == contents[1]


def test_instances_file_has_a_header_and_a_sorted_row_per_cube(tmp_path):
  found = _write(tmp_path)
  with open(tmp_path / 'instances.csv', newline='', encoding='utf-8') as file:
    header, *rows = csv.reader(file)
  assert header == [
    *('split', 'word', 'rank', 'resolution', 'scan_id', 'x', 'y', 'z'),
    *('size_x', 'size_y', 'size_z', 'distance'),
  ]
  assert len(rows) == len(found.instances) == 4 * 17
  keys = [(row[0], *map(int, row[1:4]), row[4]) for row in rows]
  assert keys == sorted(keys)
  first = found.instances[1]
  assert rows[1] == [
    *(first.split, str(first.word), str(first.rank), str(first.resolution)),
    first.scan_id,
    *map(str, (*first.origin, *first.size)),
    f'{first.distance:.6f}',
  ]


def test_vocabulary_file_holds_words_settings_and_versions(tmp_path):
  found = _write(tmp_path)
  with open(tmp_path / 'vocabulary.json', encoding='utf-8') as file:
    contents = json.load(file)
  assert contents['settings'] == dataclasses.asdict(found.settings)
  assert contents['words'][2] == {
    'word': 2,
    'scan_id': found.words[2].scan_id,
    'place': list(found.words[2].place),
  }
  assert contents['versions']['numpy'] == np.__version__


def test_a_folder_without_a_vocabulary(tmp_path):
  folder = os.fspath(tmp_path)
  with pytest.raises(errors.UserError, match=r'vocabulary\.json is missing'):
    vocabulary.read_vocabulary(folder)
  _write(tmp_path)
  os.remove(tmp_path / 'instances.csv')
  with pytest.raises(errors.UserError, match=r'instances\.csv is missing'):
    vocabulary.read_vocabulary(folder)


def _refused(folder):
  with pytest.raises(errors.UserError) as caught:
    vocabulary.read_vocabulary(os.fspath(folder))
  assert 'discover_words' in str(caught.value)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  'text',
  [
    *('', '[]', '{}', 'null', '{"words": 3}', '\x00'),
    '{"words": [], "settings": {"colour": 1}, "notes": []}',
    '{"words": [], "settings": {"words": 0}, "notes": []}',
    '{"words": [{"word": 0}], "settings": {}, "notes": []}',
    '{"words": [], "settings": {}, "notes": null}',
  ],
)
def test_a_file_that_is_no_vocabulary(tmp_path, text):
  _write(tmp_path)
  (tmp_path / 'vocabulary.json').write_text(text)
  assert 'vocabulary.json is not a vocabulary file' in _refused(tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path):
  _write(tmp_path)
  os.remove(tmp_path / 'vocabulary.json')
  (tmp_path / 'vocabulary.json').mkdir()
  assert 'vocabulary.json is not a vocabulary file' in _refused(tmp_path)


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('train,0,0,0,', 'train,0,0,x,'),
    ('train,0,0,0,', 'test,0,0,0,'),
    ('scan_id', 'scan'),
    (',64,64,32,', ',64,64\n'),
    ('train', '\x00'),
  ],
)
def test_rows_that_are_broken(tmp_path, old, new):
  _write(tmp_path)
  path = tmp_path / 'instances.csv'
  path.write_text(path.read_text().replace(old, new, 1))
  assert 'instances.csv is not a vocabulary file' in _refused(tmp_path)


def test_words_and_cubes_must_belong_together(tmp_path):
  _write(tmp_path)
  path = tmp_path / 'instances.csv'
  whole = path.read_text()
  lines = whole.splitlines()
  path.write_text('\n'.join(one for one in lines if ',3,' not in one[:13]))
  assert 'words [3] in only one of' in _refused(tmp_path)
  path.write_text(whole.replace('train,0,', 'train,7,'))
  assert '7' in _refused(tmp_path)
  path.write_text(whole)
  contents = json.loads((tmp_path / 'vocabulary.json').read_text())
  contents['words'][1]['word'] = 5
  (tmp_path / 'vocabulary.json').write_text(json.dumps(contents))
  assert 'words [0, 5, 2, 3] in vocabulary.json' in _refused(tmp_path)


def test_writing_leaves_the_old_file_where_it_fails(tmp_path, monkeypatch):
  found = _write(tmp_path)
  before = (tmp_path / 'instances.csv').read_bytes()

  class Broken(float):
    def __format__(self, spec):
      raise OSError(28, 'No space left on device')

  instances = (
    *found.instances[:5],
    dataclasses.replace(found.instances[5], distance=Broken(1.0)),
  )
  with pytest.raises(OSError, match='No space left'):
    vocabulary.write_vocabulary(
      os.fspath(tmp_path), dataclasses.replace(found, instances=instances)
    )
  assert (tmp_path / 'instances.csv').read_bytes() == before


def test_rejected_scans_are_sorted(tmp_path):
  rows = [('b', 'truncated', 'b.raw, "short"'), ('a', 'missing_raw', 'a.mhd')]
  vocabulary.write_rejected(os.fspath(tmp_path), rows)
  assert (tmp_path / 'rejected.csv').read_text() == (
    'scan,reason,detail\na,missing_raw,a.mhd\nb,truncated,"b.raw, ""short"""\n'
  )


def test_descriptors_file(tmp_path):
  rows = np.arange(6.0).reshape(2, 3)
  vocabulary.write_descriptors(os.fspath(tmp_path), ['a', '肺'], rows)
  assert os.listdir(tmp_path) == ['descriptors.npz']
  with np.load(tmp_path / 'descriptors.npz', allow_pickle=False) as file:
    assert file['scan_id'].tolist() == ['a', '肺']
    assert file['descriptors'].dtype == np.float32
    np.testing.assert_array_equal(file['descriptors'], rows)
