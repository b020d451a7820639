"""Layouts of scan folders, and the csv files of LUNA16."""

import os

import numpy as np
import pytest

from tests.scans import scan_files
from transvw_tf2 import schema
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader


def _touch(folder, *names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _refused(folder):
  with pytest.raises(luna16.LayoutError) as caught:
    luna16.find_scans(os.fspath(folder))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_folds_0_to_4_train_5_and_6_validate_the_rest_is_held_out(tmp_path):
  for subset in range(10):
    _touch(tmp_path / f'subset{subset}', f'{9 - subset}.1.mhd')
    _touch(tmp_path / f'subset{subset}', f'{9 - subset}.1.raw')
  _touch(tmp_path, 'annotations.csv', 'seg-lungs-LUNA16/1.1.mhd')
  found = luna16.find_scans(os.fspath(tmp_path))
  assert [one.scan_id for one in found] == [f'{one}.1' for one in range(10)]
  assert [one.subset for one in found] == list(range(9, -1, -1))
  assert [one.split for one in reversed(found)] == [
    *[schema.TRAIN] * 5,
    *[schema.VALIDATION] * 2,
    *[schema.HELD_OUT] * 3,
  ]
  assert found[0].path == os.fspath(tmp_path / 'subset9' / '0.1.mhd')


def test_subsets_may_be_nested_and_empty(tmp_path):
  _touch(tmp_path, 'subset0/subset0/1.mhd', 'subset0/subset0/1.raw')
  _touch(tmp_path, 'subset0/2.mhd', 'subset0/.DS_Store', 'subset0/._2.mhd')
  (tmp_path / 'subset1').mkdir()
  _touch(tmp_path, 'subset10/3.mhd', 'subset/4.mhd', 'other/5.mhd', 'subset2')
  found = luna16.find_scans(os.fspath(tmp_path))
  assert [(one.scan_id, one.subset) for one in found] == [('1', 0), ('2', 0)]


def test_own_folders_of_every_format(tmp_path):
  for index, suffix in enumerate(reader.SCAN_SUFFIXES):
    _touch(tmp_path / 'train', f'patient.{index}{suffix}')
  _touch(tmp_path, 'train/patient.0.raw', 'train/patient.6.json', 'train/a.txt')
  (tmp_path / 'validation' / 'dicom').mkdir(parents=True)
  found = luna16.find_scans(os.fspath(tmp_path))
  assert [one.scan_id for one in found] == [
    'dicom',
    *[f'patient.{index}' for index in range(len(reader.SCAN_SUFFIXES))],
  ]
  assert {one.subset for one in found} == {None}
  assert found[0] == luna16.ScanFile(
    'dicom', os.fspath(tmp_path / 'validation' / 'dicom'), schema.VALIDATION
  )
  assert all(one.split == schema.TRAIN for one in found[1:])


def test_a_suffix_in_capitals_is_not_passed_over(tmp_path):
  _touch(tmp_path / 'train', 'a.NII.GZ', 'b.Mhd', 'c.nrrd')
  found = luna16.find_scans(os.fspath(tmp_path))
  assert [one.scan_id for one in found] == ['a', 'b', 'c']


def test_a_folder_that_is_no_dicom_series_is_listed_and_refused(tmp_path):
  _touch(tmp_path, 'train/notes/readme.txt')
  (found,) = luna16.find_scans(os.fspath(tmp_path))
  with pytest.raises(reader.ScanError, match='not_one_series'):
    reader.read_scan(found.path)


def test_loose_dicom_files_are_not_passed_over_in_silence(tmp_path, caplog):
  _touch(
    tmp_path / 'train', '1.dcm', '2.DCM', '._2.dcm', 'a.nrrd', 'series/3.dcm'
  )
  found = luna16.find_scans(os.fspath(tmp_path))
  assert [one.scan_id for one in found] == ['a', 'series']
  (record,) = caplog.records
  assert record.getMessage() == (
    f'2 DICOM files right in {tmp_path / "train"} are passed over, the first is'
    ' 1.dcm: give each series a folder of its own there'
  )


def test_no_folder_and_no_scans(tmp_path):
  assert _refused(tmp_path / 'nope') == (
    f'no folder {tmp_path / "nope"}; give the folder of the scans'
  )
  (tmp_path / 'file').touch()
  assert 'no folder' in _refused(tmp_path / 'file')
  text = _refused(tmp_path)
  assert text.startswith(f'no scan found in {tmp_path}; expected LUNA16')
  (tmp_path / 'train').mkdir()
  (tmp_path / 'subset0').mkdir()
  _touch(tmp_path, 'subset0/1.raw', '1.mhd')
  assert 'no scan found' in _refused(tmp_path)


def test_both_layouts_at_once_are_refused(tmp_path):
  _touch(tmp_path, 'subset3/1.mhd')
  (tmp_path / 'train').mkdir()
  assert len(luna16.find_scans(os.fspath(tmp_path))) == 1
  _touch(tmp_path, 'train/2.mhd')
  text = _refused(tmp_path)
  assert 'subset3/1.mhd' in text
  assert 'train/2.mhd' in text


@pytest.mark.parametrize(
  'names',
  [
    ('subset0/1.mhd', 'subset6/1.mhd'),
    ('subset0/1.mhd', 'subset0/1.nrrd'),
    ('subset0/1.mhd', 'subset0/subset0/1.mhd'),
    ('train/1.npy', 'validation/1.nii.gz'),
  ],
)
def test_the_same_id_twice_is_refused(tmp_path, names):
  _touch(tmp_path, *names)
  text = _refused(tmp_path)
  assert 'scan id 1 occurs twice' in text
  for name in names:
    assert name in text


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
  (tmp_path / 'train').mkdir()
  name = os.fsencode(tmp_path / 'train') + b'/\xff.mhd'
  with open(name, 'wb'):
    pass
  text = _refused(tmp_path)
  assert 'not named in UTF-8' in text
  text.encode('utf-8')


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
  _touch(tmp_path, 'subset0/1.mhd')
  scandir = os.scandir

  def fail(path):
    if os.path.basename(path) == 'subset0':
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', fail)
  assert 'Permission denied' in _refused(tmp_path)


def test_lung_masks(tmp_path):
  mask = np.zeros(scan_files.SIZE, np.uint8)
  mask[10:20] = 4
  (tmp_path / 'seg-lungs-LUNA16').mkdir()
  path = os.fspath(tmp_path / 'seg-lungs-LUNA16' / '1.2.mhd')
  reader.write_scan(path, mask, geometry_lib.Geometry(mask.shape))
  folder = os.fspath(tmp_path)
  assert luna16.lung_mask_path(folder, '1.2') == path
  np.testing.assert_array_equal(reader.read_scan(path, check=False).hu, mask)
  assert luna16.lung_mask_path(folder, '1.3') is None


_ANNOTATIONS = """seriesuid,coordX,coordY,coordZ,diameter_mm
1.2,-128.699421965,-175.319271789,-298.387506434,5.6514706350
1.3,0,1e1,-2,8
"""
_CANDIDATES = """seriesuid,coordX,coordY,coordZ,class
1.2,68.42,-74.48,-288.7,0
1.2,-95.209361,-91.809406,-377.42635,1
"""


@pytest.mark.parametrize('start', ['', '\ufeff'])
def test_reads_the_csv_files(tmp_path, start):
  for name, text in (
    (luna16.ANNOTATIONS_FILE, _ANNOTATIONS),
    (luna16.CANDIDATES_FILE, _CANDIDATES),
  ):
    (tmp_path / name).write_text(start + text, encoding='utf-8')
  folder = os.fspath(tmp_path)
  assert luna16.read_annotations(folder) == [
    luna16.Annotation(
      '1.2', (-128.699421965, -175.319271789, -298.387506434), 5.651470635
    ),
    luna16.Annotation('1.3', (0.0, 10.0, -2.0), 8.0),
  ]
  assert luna16.read_candidates(folder) == [
    luna16.Candidate('1.2', (68.42, -74.48, -288.7), 0),
    luna16.Candidate('1.2', (-95.209361, -91.809406, -377.42635), 1),
  ]


def test_csv_files_that_are_not_there(tmp_path):
  with pytest.raises(luna16.LayoutError, match=r'no annotations\.csv in'):
    luna16.read_annotations(os.fspath(tmp_path))
  with pytest.raises(luna16.LayoutError, match=r'no candidates_V2\.csv in'):
    luna16.read_candidates(os.fspath(tmp_path))


@pytest.mark.parametrize(
  ('row', 'line'),
  [
    ('1.2,1,2,3', 3),
    ('1.2,1,2,x,4', 3),
    ('1.2,1,2,,4', 3),
    ('1.2,1,nan,3,4', 3),
    ('1.2,1,2,3,inf', 3),
    ('1.2,1,2,3,0', 3),
    ('1.2,1,2,3,-1', 3),
    (',1,2,3,4', 3),
    ('1.2', 3),
    ('\ud800', 0),
  ],
)
def test_broken_annotation_rows(tmp_path, row, line):
  path = tmp_path / luna16.ANNOTATIONS_FILE
  text = f'seriesuid,coordX,coordY,coordZ,diameter_mm\n1.1,1,2,3,4\n{row}\n'
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  with pytest.raises(luna16.LayoutError) as caught:
    luna16.read_annotations(os.fspath(tmp_path))
  assert f'{path} line {line} is not a row of annotations.csv' in str(
    caught.value
  )


@pytest.mark.parametrize('label', ['2', '-1', '0.5', '', 'x'])
def test_broken_candidate_labels(tmp_path, label):
  (tmp_path / luna16.CANDIDATES_FILE).write_text(
    f'seriesuid,coordX,coordY,coordZ,class\n1.2,1,2,3,{label}\n'
  )
  with pytest.raises(luna16.LayoutError, match='line 2 is not a row'):
    luna16.read_candidates(os.fspath(tmp_path))


@pytest.mark.parametrize('text', ['', '<html>Not found</html>\n', 'a,b\n1,2\n'])
def test_a_file_that_is_not_that_csv(tmp_path, text):
  (tmp_path / luna16.ANNOTATIONS_FILE).write_text(text)
  with pytest.raises(luna16.LayoutError, match=r"'seriesuid'.*download it"):
    luna16.read_annotations(os.fspath(tmp_path))
