"""Files of the vocabulary, there and back."""

import csv
import dataclasses
import json
import os

import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary


def _make(frame='voxel'):
  """Makes 4 words of 5 training patients and 2 validation patients."""
  settings = settings_lib.Settings(
    words=4, instances=5, validation_instances=2, frame=frame
  )
  words = tuple(
    vocabulary.Word(word, f't{word}', (word, 9, 2 * word)) for word in range(4)
  )
  instances = [
    vocabulary.Instance(
      split=split,
      word=word.word,
      rank=rank,
      resolution=resolution,
      scan_id=f'{split[0]}{(word.word + rank) % 5}',
      origin=word.place,
      size=(64 + resolution, 64 + resolution, 32),
      distance=0.1 * rank + 1 / 3,
    )
    for word in words
    for split, count, resolutions in (
      (schema.TRAIN, 5, 3),
      (schema.VALIDATION, 2, 1),
    )
    for rank in range(count)
    for resolution in range(resolutions)
  ]
  instances = [
    dataclasses.replace(one, distance=round(one.distance, 6))
    for one in instances
  ]
  return vocabulary.Vocabulary(
    settings, words, tuple(sorted(instances)), ('a note',)
  )


def _write(folder, **changes):
  found = _make(**changes)
  vocabulary.write_vocabulary(os.fspath(folder), found)
  return found


def test_files_there_and_back(tmp_path):
  found = _write(tmp_path)
  assert vocabulary.read_vocabulary(os.fspath(tmp_path)) == found
  assert sorted(os.listdir(tmp_path)) == ['instances.csv', 'vocabulary.json']


def test_the_frame_is_a_setting_that_older_files_lack(tmp_path):
  found = _write(tmp_path, frame='lung')
  assert vocabulary.read_vocabulary(os.fspath(tmp_path)) == found
  path = tmp_path / 'vocabulary.json'
  contents = json.loads(path.read_text())
  assert contents['settings'].pop('frame') == 'lung'
  path.write_text(json.dumps(contents))
  old = vocabulary.read_vocabulary(os.fspath(tmp_path))
  assert old.settings == dataclasses.replace(found.settings, frame='voxel')


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


def test_a_patient_in_two_splits_is_refused(tmp_path):
  _write(tmp_path)
  path = tmp_path / 'instances.csv'
  lines = path.read_text().splitlines()
  row = next(one for one in lines if one.startswith('train,'))
  path.write_text('\n'.join([*lines, row.replace('train', 'validation', 1)]))
  assert 'in two splits in instances.csv' in _refused(tmp_path)


def test_words_and_cubes_must_belong_together(tmp_path):
  _write(tmp_path)
  path = tmp_path / 'instances.csv'
  whole = path.read_text()
  lines = whole.splitlines()
  path.write_text('\n'.join(one for one in lines if ',3,' not in one[:13]))
  assert 'words [3] in only one of' in _refused(tmp_path)
  path.write_text(whole.replace('train,0,', 'train,7,'))
  assert 'words [7] in only one of' in _refused(tmp_path)
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
  with pytest.raises(
    errors.UserError, match=r'instances\.csv cannot be written .*No space left'
  ):
    vocabulary.write_vocabulary(
      os.fspath(tmp_path), dataclasses.replace(found, instances=instances)
    )
  assert (tmp_path / 'instances.csv').read_bytes() == before
  assert not [one for one in os.listdir(tmp_path) if one.count('.') > 1]


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


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('"place": [\n    0,', '"place": [\n    Infinity,'),
    ('"place": [\n    0,', '"place": ['),
    ('"place": [\n    0,', '"place": [\n    9223372036854775808,'),
    ('"place": [\n    0,', '"place": [\n    7,\n    0,'),
    ('"a note"', '[' * 100_000 + ']' * 100_000),
  ],
)
def test_values_that_json_allows(tmp_path, old, new):
  _write(tmp_path)
  path = tmp_path / 'vocabulary.json'
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(errors.UserError, match='is not a vocabulary file') as got:
    vocabulary.read_vocabulary(os.fspath(tmp_path))
  assert len(str(got.value)) < 1500


def test_another_encoding_is_one_short_line(tmp_path):
  _write(tmp_path)
  path = tmp_path / 'instances.csv'
  path.write_bytes(path.read_text().encode('utf-16'))
  with pytest.raises(errors.UserError, match='UnicodeDecodeError') as got:
    vocabulary.read_vocabulary(os.fspath(tmp_path))
  assert len(str(got.value)) < 1500
