"""Released .npy files: what is read, what is refused, and by which line."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import released_npy

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_DATA1 = 'train_data1_vwGen_ex_ref_fold0.0.npy'
_LABEL1 = 'train_label1_vwGen_ex_ref_fold0.0.npy'
_LABEL2 = 'train_label2_vwGen_ex_ref_fold0.0.npy'
_VAL_LABEL = 'val_label1_vwGen_ex_ref_fold0.0.npy'


def _write(folder, name, labels, dtype=np.float32):
  """Writes a pair of files: cube r < 9 is filled with r / 100 + 0.001."""
  labels = np.asarray(labels, dtype)
  # The others are zeros that take no room on the disk.
  cubes = np.lib.format.open_memmap(
    folder / name.format('data'), 'w+', dtype, (len(labels), 64, 64, 32)
  )
  for row in range(min(9, len(labels))):
    cubes[row] = row / 100 + 0.001
  np.save(folder / name.format('label'), labels[:, None])


def _write_all(folder, train=(0, 0, 1), validation=(0, 1), fold=0, **options):
  for number in (1, 2, 3):
    name = f'train_{{}}{number}_vwGen_ex_ref_fold{fold}.0.npy'
    _write(folder, name, train, **options)
  name = f'val_{{}}1_vwGen_ex_ref_fold{fold}.0.npy'
  _write(folder, name, validation, **options)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_reads_rows_words_and_ranks(tmp_path, dtype):
  _write_all(tmp_path, train=(0, 0, 1, 2, 2, 2), dtype=dtype)
  (tmp_path / 'notes.txt').write_text('not one of the files')
  parts = released_npy.open_parts(os.fspath(tmp_path))
  assert [(one.split, one.fold, one.resolution) for one in parts] == [
    ('train', 0, 0),
    ('train', 0, 1),
    ('train', 0, 2),
    ('validation', 0, 0),
  ]
  first = parts[0]
  assert first.path == os.fspath(tmp_path / _DATA1)
  assert isinstance(first.cubes, np.memmap) and first.cubes.dtype == dtype
  assert first.words.dtype == np.int64
  np.testing.assert_array_equal(first.words, [0, 0, 1, 2, 2, 2])
  np.testing.assert_array_equal(first.ranks(), [0, 1, 0, 0, 1, 2])
  cube = first.read_cube(3)
  assert cube.shape == schema.CUBE_SHAPE and cube.dtype == np.int16
  assert (cube == -938).all()  # 0.031 * 2000 - 1000


def test_every_hu_survives_the_way_through_float32(tmp_path):
  hu = np.resize(np.arange(-1000, 1001), (1, *schema.CUBE_SHAPE))
  _write_all(tmp_path, train=[0], validation=[0])
  np.save(tmp_path / _DATA1, schema.scale_hu(hu).astype(np.float32))
  part = released_npy.open_parts(os.fspath(tmp_path))[0]
  np.testing.assert_array_equal(part.read_cube(0), hu[0])


def test_the_rounding_of_floats_may_leave_the_range(tmp_path):
  _write_all(tmp_path, train=[0], validation=[0])
  cubes = np.full((1, *schema.CUBE_SHAPE), np.nextafter(1, 2))
  cubes[0, 0] = -1e-9
  np.save(tmp_path / _DATA1, cubes)
  cube = released_npy.open_parts(os.fspath(tmp_path))[0].read_cube(0)
  assert (cube[0] == -1000).all() and (cube[1:] == 1000).all()


@pytest.mark.parametrize(
  ('value', 'text'), [(1.1, '0 .. 1.1'), (-300.0, '-300 .. 0'), (np.nan, 'nan')]
)
def test_values_out_of_range_name_file_and_row(tmp_path, value, text):
  _write_all(tmp_path)
  cubes = np.zeros((3, *schema.CUBE_SHAPE), np.float32)
  cubes[2, 5, 6, 7] = value
  np.save(tmp_path / _DATA1, cubes)
  part = released_npy.open_parts(os.fspath(tmp_path))[0]
  part.read_cube(1)
  with pytest.raises(errors.UserError) as caught:
    part.read_cube(2)
  line = f'{tmp_path / _DATA1} row 2 has values '
  assert str(caught.value).startswith(line) and text in str(caught.value)


def test_words_go_on_in_the_next_fold(tmp_path):
  _write_all(tmp_path, np.arange(50), np.arange(50), fold=3)
  _write_all(tmp_path, [50, 50, 51], [50], fold=4)
  parts = released_npy.open_parts(os.fspath(tmp_path))
  train = [one for one in parts if one.split == schema.TRAIN]
  assert [(one.fold, one.words[-1]) for one in train] == [
    *[(3, 49)] * 3,
    *[(4, 51)] * 3,
  ]


def test_validation_may_be_absent(tmp_path):
  _write_all(tmp_path)
  for kind in ('data', 'label'):
    os.remove(tmp_path / f'val_{kind}1_vwGen_ex_ref_fold0.0.npy')
  parts = released_npy.open_parts(os.fspath(tmp_path))
  assert {one.split for one in parts} == {schema.TRAIN}


def test_the_lost_last_row_is_told(tmp_path):
  _write_all(tmp_path, train=(0, 0, 0, 1, 1, 1, 2, 2), validation=(0, 1, 2))
  parts = released_npy.open_parts(os.fspath(tmp_path))
  lines = list(released_npy.notes(parts, words=3))
  assert len(lines) == 3  # the three training files
  assert lines[0] == (
    f'{tmp_path / _DATA1} has 2 rows of its last word, 2, and 3 of the others;'
    ' the published script loses the last row of each file'
  )
  assert not list(released_npy.notes(parts, words=2))


def test_other_differences_are_told_too(tmp_path):
  _write_all(tmp_path, train=(0, 1, 1, 2, 2), validation=(0, 1, 2))
  parts = released_npy.open_parts(os.fspath(tmp_path))
  lines = list(released_npy.notes(parts, words=3))
  assert lines[0].endswith('has 1 to 2 rows per word, fewest of word 0')


def _fails(folder, *texts):
  with pytest.raises(errors.UserError) as caught:
    released_npy.open_parts(os.fspath(folder))
  for text in texts:
    assert text in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('labels', 'texts'),
  [
    ([0, 0.5, 1], ['row 1 has label 0.5; a whole number from 0 to 49']),
    ([0, 0, 50], ['row 2 has label 50; ']),
    ([-1, 0, 1], ['row 0 has label -1; ']),
    ([0, np.nan, 1], ['row 1 has label nan; ']),
    ([0, 2, 1], ['row 2 has label 1; labels must not fall']),
    ([0, 2, 2], [_LABEL2 + ' row 1 has label 0, and', _LABEL1 + ' has 2']),
    ([0, 0], [_DATA1 + ' has 3 rows and', _LABEL1 + ' has 2']),
    (np.zeros((0, 1)), ['has no rows']),
  ],
)
def test_wrong_labels(tmp_path, labels, texts):
  _write_all(tmp_path)
  np.save(tmp_path / _LABEL1, np.reshape(labels, (-1, 1)))
  _fails(tmp_path, _LABEL1, *texts)


@pytest.mark.parametrize(
  ('labels', 'text'),
  [
    (np.zeros(3), 'holds float64 (3,); numbers (N, 1) are expected'),
    (np.zeros((3, 2)), 'holds float64 (3, 2); numbers'),
    (np.full((3, 1), '0'), 'holds <U1 (3, 1); numbers'),
    (np.zeros((3, 1), complex), 'holds complex128'),
  ],
)
def test_labels_of_another_shape_or_kind(tmp_path, labels, text):
  _write_all(tmp_path)
  np.save(tmp_path / _LABEL1, labels)
  _fails(tmp_path, f'{tmp_path / _LABEL1} {text}')


@pytest.mark.parametrize(
  ('array', 'text'),
  [
    (np.zeros((3, 64, 64, 32), np.int16), 'holds int16 (3, 64, 64, 32); flo'),
    (np.zeros((3, 64, 64, 32), np.float16), 'holds float16'),
    (np.zeros((3, 32, 64, 64), np.float32), 'holds float32 (3, 32, 64, 64)'),
    (np.zeros((3, 1, 64, 64, 32), np.float32), '64, 32) is expected'),
  ],
)
def test_cubes_of_another_shape_or_kind(tmp_path, array, text):
  _write_all(tmp_path)
  np.save(tmp_path / _DATA1, array)
  _fails(tmp_path, _DATA1, text)


def test_resolutions_of_other_lengths(tmp_path):
  _write_all(tmp_path)
  _write(tmp_path, 'train_{}2_vwGen_ex_ref_fold0.0.npy', [0, 0, 1, 1])
  _fails(tmp_path, _LABEL1 + ' has 3 rows and', _LABEL2 + ' has 4; a row')


def test_pickles_are_never_loaded(tmp_path):
  _write_all(tmp_path)

  class Trap:
    def __reduce__(self):
      return os.mkdir, (os.fspath(tmp_path / 'trap'),)

  np.save(tmp_path / _DATA1, np.array([Trap()], object), allow_pickle=True)
  _fails(tmp_path, _DATA1, 'holds pickled Python objects, which are never')
  (tmp_path / _DATA1).write_bytes(b'\x80\x04cos\nsystem\n.')
  _fails(tmp_path, _DATA1, 'is refused: it is no whole .npy file (')
  assert not (tmp_path / 'trap').exists()


def test_files_cut_short(tmp_path):
  _write_all(tmp_path)
  os.truncate(tmp_path / _DATA1, 10_000)
  _fails(tmp_path, _DATA1, 'is refused: it is cut short; get the file again')
  os.truncate(tmp_path / _DATA1, 0)
  _fails(tmp_path, _DATA1, 'is refused: it is no whole .npy file (')


@pytest.mark.parametrize(
  'name',
  [
    _DATA1,
    _LABEL2,
    'train_data3_vwGen_ex_ref_fold0.0.npy',
    _VAL_LABEL,
  ],
)
def test_missing_files_are_named(tmp_path, name):
  _write_all(tmp_path)
  os.remove(tmp_path / name)
  _fails(tmp_path, f'{tmp_path / name} is missing; the files of data and')


def test_missing_folds(tmp_path):
  _write_all(tmp_path, np.arange(50), [0], fold=0)
  _write_all(tmp_path, [100], [100], fold=2)
  _fails(tmp_path, 'training files of folds 0, 2; those between are missing')
  for name in os.listdir(tmp_path):
    if name.startswith('train') and 'fold2' in name:
      os.remove(tmp_path / name)
  _fails(tmp_path, 'training files of folds 0 and validation files of folds 0,')


def test_missing_words(tmp_path):
  _write_all(tmp_path, train=(0, 2))
  _fails(tmp_path, 'has no training rows of word 1, but of later ones')
  _write_all(tmp_path, train=(0, 1), validation=(0, 2))
  _fails(tmp_path, 'has validation rows of word 2, but no training rows of it')


def test_folders_without_the_files(tmp_path):
  _fails(tmp_path, f'no released training data in {tmp_path}; ', _DATA1)
  _fails(tmp_path / 'gone', f'cannot list {tmp_path / "gone"}: No such file')


# Sparse files of the released size take no room on the disk.
_LIMITED = """
import resource, sys
import numpy as np
from transvw_tf2.scans import released_npy
for name in ('train_{}1', 'train_{}2', 'train_{}3', 'val_{}1'):
  name += '_vwGen_ex_ref_fold0.0.npy'
  rows = 9999 if 'train' in name else 1499
  np.lib.format.open_memmap(name.format('data'), 'w+', np.float64,
                            (rows, 64, 64, 32))
  labels = np.arange(rows) // ((rows + 1) // 50)
  np.save(name.format('label'), labels[:, None].astype(float))
now = resource.getrlimit(resource.RLIMIT_DATA)[1]
resource.setrlimit(resource.RLIMIT_DATA, (1 << 28, now))
parts = released_npy.open_parts('.')
for part in parts:
  for row in (*range(5), len(part.words) - 1):
    assert (part.read_cube(row) == -1000).all()
print(sum(part.cubes.nbytes for part in parts))
"""


def test_files_larger_than_the_memory_allowed(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _LIMITED],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': _ROOT, 'OPENBLAS_NUM_THREADS': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert re.fullmatch(r'\d+\n', done.stdout) and int(done.stdout) > 3e10


def test_a_header_longer_than_the_file_is_not_allocated(tmp_path):
  _write_all(tmp_path)
  (tmp_path / 'train_label1_vwGen_ex_ref_fold0.0.npy').write_bytes(
    b'\x93NUMPY\x03\x00\xff\xff\xff\x7f{'
  )
  _fails(tmp_path, 'train_label1', 'is cut short')
