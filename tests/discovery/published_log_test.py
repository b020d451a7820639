"""Text logs of the published script: rows to instances and back."""

import dataclasses
import math
import os

import numpy as np
import pytest
import SimpleITK as sitk

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import cubes
from transvw_tf2.discovery import published_log
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_SIZE = (100, 90, 40)
_FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
_TRAIN1 = 'train_data1_vwGen_exRef.txt'
_TRAIN2 = 'train_data2_vwGen_exRef.txt'
_TRAIN3 = 'train_data3_vwGen_exRef.txt'
_VALIDATION = 'val_data1_vwGen_exRef.txt'

_LOGS = {
  _TRAIN1: (
    '/data/subset0/a.npy#10,20,3,64,32#0\n'
    'C:\\data\\subset1\\b.mhd#10,20,3,64,32#0\n'
    '/data/subset1/b.npy#5,6,7,64,32#1\n'
    '/data/subset0/a.npy#5,6,7,64,32#1\n'
  ),
  _TRAIN2: (
    '/data/subset0/a.npy#12,11,3,50,32#0\n'
    '/data/subset1/b.npy#1,21,3,55,32#0\n'
    '/data/subset1/b.npy#5,6,7,70,32#1\n'
    '/data/subset0/a.npy#9,2,7,64,32#1\n'
  ),
  _TRAIN3: (
    '/data/subset0/a.npy#13,11,3,51,32#0\n'
    '/data/subset1/b.npy#2,21,3,56,32#0\n'
    '/data/subset1/b.npy#6,6,7,71,32#1\n'
    '/data/subset0/a.npy#8,2,7,65,32#1\n'
  ),
  _VALIDATION: 'v#10,20,3,64,32#0\nv#5,6,7,64,32#1\n',
}


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  """Scans a, b (train, b with a flipped header) and v (validation)."""
  folder = tmp_path_factory.mktemp('scans')
  rng = np.random.default_rng(3)
  for subset, scan_id in enumerate(('a', 'b', 'v')):
    subset = 5 if scan_id == 'v' else subset
    os.makedirs(folder / f'subset{subset}')
    direction = _FLIPPED if scan_id == 'b' else geometry_lib.Geometry.direction
    reader.write_scan(
      os.fspath(folder / f'subset{subset}' / f'{scan_id}.mhd'),
      rng.integers(-1000, 500, _SIZE).astype(np.int16),
      geometry_lib.Geometry(_SIZE, direction=direction),
    )
  return {one.scan_id: one for one in luna16.find_scans(os.fspath(folder))}


def _write(folder, **changes):
  """Writes the logs with changes, by name without suffix (None: no file)."""
  for name, text in _LOGS.items():
    text = changes.get(name.partition('_vwGen')[0], text)
    if text is not None:
      (folder / name).write_text(text)
  return os.fspath(folder)


def _read_stored(scan_file):
  """Returns the voxels of a file in its own order, [x, y, z]."""
  image = sitk.ReadImage(scan_file.path)
  return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


def test_rows_become_instances(tmp_path, scans):
  found = published_log.read_logs(_write(tmp_path), scans)
  assert found.words == (
    vocabulary.Word(0, 'a', (10, 20, 3)),
    # 100 - 5 - 64 and 90 - 6 - 64: b is flipped along x and y.
    vocabulary.Word(1, 'b', (31, 20, 7)),
  )
  assert (found.settings.words, found.settings.instances) == (2, 2)
  assert found.settings.validation_instances == 1
  assert all(math.isnan(one.distance) for one in found.instances)
  rows = [dataclasses.astuple(one)[:-1] for one in found.instances]
  assert rows == sorted(rows)
  assert len(rows) == 3 * 4 + 2
  # The rank is the order of the rows, the resolution that of the file.
  assert rows[:6] == [
    ('train', 0, 0, 0, 'a', (10, 20, 3), (64, 64, 32)),
    ('train', 0, 0, 1, 'a', (12, 11, 3), (50, 50, 32)),
    ('train', 0, 0, 2, 'a', (13, 11, 3), (51, 51, 32)),
    ('train', 0, 1, 0, 'b', (26, 6, 3), (64, 64, 32)),
    ('train', 0, 1, 1, 'b', (44, 14, 3), (55, 55, 32)),
    ('train', 0, 1, 2, 'b', (42, 13, 3), (56, 56, 32)),
  ]
  assert rows[-1] == ('validation', 1, 0, 0, 'v', (5, 6, 7), (64, 64, 32))


def test_boxes_hold_the_voxels_that_the_published_script_cut(tmp_path, scans):
  found = published_log.read_logs(_write(tmp_path), scans)
  lines = (tmp_path / _TRAIN1).read_text().splitlines()
  ours = [one for one in found.instances if one.resolution == 0]
  for line, one in zip(lines, ours[:4], strict=True):
    x, y, z = map(int, line.split('#')[1].split(',')[:3])
    stored = _read_stored(scans[one.scan_id])
    box = stored[x : x + 64, y : y + 64, z : z + 32]
    if one.scan_id == 'b':
      box = box[::-1, ::-1]
    scan = reader.read_scan(scans[one.scan_id].path)
    np.testing.assert_array_equal(
      cubes.cut_cube(scan.hu, one.origin, one.size), box
    )


def test_the_vocabulary_can_be_written_and_read(tmp_path, scans):
  found = published_log.read_logs(_write(tmp_path), scans)
  os.makedirs(tmp_path / 'vocabulary')
  vocabulary.write_vocabulary(os.fspath(tmp_path / 'vocabulary'), found)
  again = vocabulary.read_vocabulary(os.fspath(tmp_path / 'vocabulary'))
  assert (again.words, again.settings) == (found.words, found.settings)
  assert again.notes == found.notes
  # NaN differs from itself.
  known = [dataclasses.replace(one, distance=0.0) for one in again.instances]
  assert known == [
    dataclasses.replace(one, distance=0.0) for one in found.instances
  ]
  assert all(math.isnan(one.distance) for one in again.instances)


def test_the_way_back_gives_the_same_rows(tmp_path, scans):
  found = published_log.read_logs(_write(tmp_path), scans)
  (tmp_path / 'back').mkdir()
  names = published_log.write_logs(os.fspath(tmp_path / 'back'), found, scans)
  assert names == sorted(_LOGS) == sorted(os.listdir(tmp_path / 'back'))
  for name, text in _LOGS.items():
    lines = (tmp_path / 'back' / name).read_text().splitlines()
    for line, wanted in zip(lines, text.splitlines(), strict=True):
      path, _, rest = line.partition('#')
      assert rest == wanted.partition('#')[2]
      assert path in {one.path for one in scans.values()}
      assert os.path.basename(path)[0] in os.path.basename(wanted)


def test_scans_may_lie_at_an_address(tmp_path, scans):
  found = published_log.read_logs(_write(tmp_path), scans)
  folder = os.path.dirname(os.path.dirname(scans['a'].path))
  remote = luna16.find_scans(f'file://{folder}')
  by_id = {one.scan_id: one for one in remote}
  again = published_log.read_logs(os.fspath(tmp_path), by_id)
  assert repr(again) == repr(found)  # distances are NaN


def test_small_differences_in_form_are_read(tmp_path, scans):
  text = (
    '/data/#1/a.nii.gz# 10, 20,3,64,32 #0.0\r\n'
    '/data/subset1/b#10,20,3,64,32#0'  # no last newline
  )
  _write(tmp_path, train_data1=text, val_data1=None)
  for name in (_TRAIN2, _TRAIN3):
    os.remove(tmp_path / name)
  found = published_log.read_logs(os.fspath(tmp_path), scans)
  assert [one.scan_id for one in found.instances] == ['a', 'b']
  assert [note.partition(':')[0] for note in found.notes[1:]] == [
    f'no {_TRAIN2}',
    f'no {_TRAIN3}',
    f'no {_VALIDATION}',
  ]


def test_scans_of_another_split_are_told(tmp_path, scans):
  text = 'v#10,20,3,64,32#0\n'
  _write(tmp_path, train_data1=text, train_data2=text, train_data3=text)
  os.remove(tmp_path / _VALIDATION)
  found = published_log.read_logs(os.fspath(tmp_path), scans)
  assert {one.split for one in found.instances} == {schema.TRAIN}
  assert found.notes[-1].startswith('1 scans are of another split in the fol')


_FIRST = 'a#10,20,3,64,32#0\n'


@pytest.mark.parametrize(
  ('name', 'text', 'line'),
  [
    ('train_data1', '', f'no rows of {_TRAIN1} in '),
    ('train_data1', None, f'no rows of {_TRAIN1} in '),
    ('train_data1', 'a,10,20\n', f"{_TRAIN1} line 1 is 'a,10,20'; path#x,y,z"),
    ('train_data1', f'{_FIRST}\n', "line 2 is ''; path#x,y,z,size,depth#label"),
    ('train_data1', f'{_FIRST}b#1,2,3,64#0\n', 'line 2 is'),
    ('train_data1', f'{_FIRST}b#1,-2,3,64,32#0\n', 'line 2 is'),
    ('train_data1', f'{_FIRST}b#1,2,3,64,32#0.5\n', 'line 2 is'),
    ('train_data1', 'c#10,20,3,64,32#0\n', 'line 1 names scan c, which is not'),
    (
      'train_data1',
      'a#10,20,3,64,31#0\n',
      'line 1 has a box of side 64 and 31',
    ),
    ('train_data1', 'a#10,20,3,0,32#0\n', 'line 1 has a box of side 0 and 32'),
    ('train_data1', 'a#37,20,3,64,32#0\n', 'its scan of 100 x 90 x 40 voxels'),
    ('train_data1', f'{_FIRST}{_FIRST}', 'line 2 has scan a in word 0 again, '),
    ('train_data1', _FIRST, f'{_TRAIN2} line 2: patient 1 of word 0 is no row'),
    ('train_data2', _FIRST, f'{_TRAIN1} line 2: patient 1 of word 0 is b in'),
    ('val_data1', 'v#0,0,0,64,32#2\n', f'{_VALIDATION} line 1 is of word 2, '),
    ('val_data1', 'a#0,0,0,64,32#0\n', 'a patient belongs to one split'),
  ],
)
def test_wrong_rows_name_file_and_line(tmp_path, scans, name, text, line):
  _write(tmp_path, **{name: text})
  with pytest.raises(errors.UserError) as caught:
    published_log.read_logs(os.fspath(tmp_path), scans)
  assert line in str(caught.value)
  assert '\n' not in str(caught.value)


def test_missing_words(tmp_path, scans):
  text = 'a#10,20,3,64,32#1\n'
  _write(tmp_path, train_data1=text, train_data2=text, train_data3=text)
  with pytest.raises(errors.UserError, match='no rows of word 0, but of later'):
    published_log.read_logs(os.fspath(tmp_path), scans)


def test_what_is_no_text(tmp_path, scans):
  _write(tmp_path)
  (tmp_path / _TRAIN2).write_bytes(b'\xff\xfe')
  with pytest.raises(errors.UserError, match=f'{_TRAIN2} cannot be read as'):
    published_log.read_logs(os.fspath(tmp_path), scans)


def test_scans_that_are_not_stored_slice_by_slice(tmp_path, scans):
  path = os.fspath(tmp_path / 'sagittal.mhd')
  reader.write_scan(
    path,
    np.zeros((70, 70, 70), np.int16),
    geometry_lib.Geometry((70, 70, 70), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0)),
  )
  _write(tmp_path, train_data1='sagittal#0,0,0,64,32#0\n')
  one = luna16.ScanFile('sagittal', path, schema.TRAIN)
  with pytest.raises(
    errors.UserError, match=r'sagittal.mhd is not stored slic'
  ):
    published_log.read_logs(os.fspath(tmp_path), {**scans, 'sagittal': one})


def test_boxes_that_a_row_cannot_say(tmp_path, scans):
  found = published_log.read_logs(_write(tmp_path), scans)
  one = found.instances[0]
  for size in ((64, 60, 32), (64, 64, 20)):
    changed = dataclasses.replace(one, size=size)
    words = dataclasses.replace(found, instances=(changed,))
    with pytest.raises(errors.UserError, match='only vocabularies of --frame'):
      published_log.write_logs(os.fspath(tmp_path), words, scans)
  with pytest.raises(errors.UserError, match='needs scan a, which is not amo'):
    published_log.write_logs(os.fspath(tmp_path), found, {})


def test_a_number_of_more_digits_than_python_takes(tmp_path, scans):
  text = _LOGS[_TRAIN1].replace('#10,20', '#10,' + '9' * 5000, 1)
  _write(tmp_path, train_data1=text)
  with pytest.raises(errors.UserError, match=r'line 1 is .* is expected'):
    published_log.read_logs(os.fspath(tmp_path), scans)
