"""Data sets of one's own scans, from a table."""

import csv
import os

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow_datasets as tfds

from beam_jobs import label_table
from beam_jobs import labelled_scans
from beam_jobs import target_cubes
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors

_SHAPE = (16, 16, 8)


def _write(folder, rows):
  with open(folder / 'labels.csv', 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows(rows)


@pytest.fixture(name='folder')
def _folder(tmp_path):
  folder = tmp_path / 'mine'
  for number in range(6):
    tiny_scans.write_scan(folder / 'scans', number)
  return folder


def _scan(number):
  return f'scans/1.2.840.{number:03d}.mhd'


def _make(data_dir, task, **config):
  config = {'name': 'tiny', 'task': task, 'cube_shape': _SHAPE} | config
  return labelled_scans.Builder(
    data_dir=str(data_dir),
    config=labelled_scans.Builder.builder_config_cls(**config),
  )


def _build(folder, data_dir, task, **config):
  builder = _make(data_dir, task, **config)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
  )
  return builder


def _examples(builder, split):
  return list(tfds.as_numpy(builder.as_dataset(split=split)))


def _reasons(builder):
  path = os.path.join(builder.data_path, 'rejected.csv')
  with open(path, encoding='utf-8') as file:
    return [row['reason'] for row in csv.DictReader(file)]


def test_whole_scans(folder, tmp_path):
  splits = ['train', 'train', 'train', 'validation', 'test', 'train']
  rows = [[_scan(n), 'ab'[n % 2], splits[n]] for n in range(6)]
  rows.append(['scans/none.mhd', 'a', 'train'])
  _write(folder, [['scan', 'label', 'split'], *rows])
  builder = _build(folder, tmp_path / 'data', 'classification')
  assert builder.info.features['label'].names == ['a', 'b']
  counts = {k: v.num_examples for k, v in builder.info.splits.items()}
  assert counts == {'train': 4, 'validation': 1, 'test': 1}
  # One scan each in validation and test: there a class is missing.
  assert _reasons(builder) == ['empty_class', 'empty_class', 'missing_file']
  (example,) = _examples(builder, 'test')
  assert example['label'] == 0
  # As SciPy would resize it, but for the smoothing: about the same mean.
  hu = np.clip(tiny_scans.make_hu(4), -1000, 1000)
  assert example['cube'].shape == _SHAPE
  assert example['cube'].mean() == pytest.approx(hu.mean(), abs=5)


def test_places(folder, tmp_path):
  rows = []
  for number in range(6):
    image = sitk.ReadImage(str(folder / _scan(number)))
    for label, voxel in (('vessel', (20, 30, 20)), ('node', (50, 40, 30))):
      point = image.TransformIndexToPhysicalPoint(voxel)
      rows.append([_scan(number), *point, label])
  rows.append([_scan(0), 1e6, 0, 0, 'node'])
  _write(folder, [['scan', 'x', 'y', 'z', 'label'], *rows])
  builder = _build(folder, tmp_path / 'data', 'classification')
  assert builder.info.features['label'].names == ['node', 'vessel']
  assert _reasons(builder) == ['outside_scan']
  splits = builder.info.splits
  assert sum(one.num_examples for one in splits.values()) == 12
  for example in _examples(builder, 'train'):
    want = [(42, 32, 26), (12, 22, 16)][example['label']]
    np.testing.assert_array_equal(example['origin'], want)


@pytest.mark.parametrize('whole', [False, True])
def test_masks(folder, tmp_path, whole):
  rows = []
  for number in range(6):
    image = sitk.ReadImage(str(folder / _scan(number)))
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    mask.CopyInformation(image)
    mask[30:46, 30:46, 16:32] = 1
    name = f'mask{number}.nii.gz'
    if number == 0:
      mask.SetOrigin((50.0, 0.0, 0.0))
    sitk.WriteImage(mask, str(folder / name))
    rows.append([_scan(number), name, 'train' if number < 4 else 'test'])
  _write(folder, [['scan', 'mask', 'split'], *rows])
  builder = _build(
    folder,
    tmp_path / 'data',
    'segmentation',
    whole_scan=whole,
    mask_cubes=3,
    mask_free_cubes=1,
  )
  assert _reasons(builder) == ['mask_geometry']
  examples = _examples(builder, 'test')
  sums = sorted(int(one['mask'].sum()) for one in examples)
  if whole:
    # 16 of 80, 80 and 48 voxels.
    assert sums == pytest.approx([16 * 16 * 8 / 75] * 2, rel=0.35)
  else:
    assert len(sums) == 2 * 4
    assert sums[:2] == [0, 0]
    assert min(sums[2:]) > 0


@pytest.mark.parametrize('places', [False, True])
def test_classes_are_numbered_as_they_are_given(tmp_path, places):
  point = ('1', '2', '3') if places else ()
  axes = 'xyz' if places else ''
  rows = [[name, *point, f'class {name}'] for name in 'abc']
  _write(tmp_path, [['scan', *axes, 'label'], *rows])
  for classes in (('class c', 'class a', 'class b'), ()):
    builder = _make(tmp_path, 'classification', classes=classes)
    requests, _ = builder.make_requests(str(tmp_path), str(tmp_path / 'cubes'))
    names = builder.info.features['label'].names
    assert names == list(classes or ('class a', 'class b', 'class c'))
    assert [one.scan_file.scan_id for one in requests] == ['a', 'b', 'c']
    labels = [
      one.places.points[0][1] if places else one.places.label
      for one in requests
    ]
    assert [names[one] for one in labels] == ['class a', 'class b', 'class c']


def test_cubes_in_a_mask_lie_by_seed_and_jitter(folder, tmp_path):
  image = sitk.ReadImage(str(folder / _scan(0)))
  mask = sitk.Image(image.GetSize(), sitk.sitkUInt8)
  mask.CopyInformation(image)
  mask[20:60, 20:60, 10:38] = 1
  sitk.WriteImage(mask, str(folder / 'mask.nii.gz'))
  _write(folder, [['scan', 'mask'], [_scan(0), 'mask.nii.gz']])

  def cut(**config):
    settings = {'mask_cubes': 20, 'mask_free_cubes': 0} | config
    builder = _make(tmp_path, 'segmentation', **settings)
    requests, _ = builder.make_requests(str(folder), str(tmp_path / 'cubes'))
    _, arrays = target_cubes.find_and_cut(requests[0])
    return arrays['origin'] * arrays['spacing'].astype(np.float64)

  origins = cut(seed=1)
  np.testing.assert_array_equal(cut(seed=1), origins)
  assert np.any(cut(seed=2) != origins, axis=1).all()
  # The same voxels of the mask, each box moved and rounded to a voxel.
  moved = np.abs(cut(seed=1, jitter_mm=10.0) - origins)
  assert np.all(moved <= 10.0 + np.array(image.GetSpacing()))
  assert np.all(moved.max(axis=0) > 5.0)


def test_one_of_two_tasks_fits_the_table(folder, tmp_path):
  _write(folder, [['scan', 'label'], *([_scan(n), n % 2] for n in range(6))])
  with pytest.raises(errors.UserError, match='not for segmentation'):
    _build(folder, tmp_path / 'data', 'segmentation')


@pytest.mark.parametrize(
  ('rows', 'line'),
  [
    ([['scan', 'class'], ['a', 'b']], 'has the columns'),
    ([['scan', 'label']], 'has no rows'),
    ([['scan', 'label'], ['a', '']], 'line 2: label is empty'),
    ([['scan', 'label'], ['a']], 'line 2: it has not as many'),
    ([['scan', 'label'], ['a', 'x'], ['b', 'q']], "line 3: label is 'q'"),
    ([['scan', 'x', 'y', 'z', 'label'], ['a', 1, 'nan', 3, 'x']], 'line 2'),
    ([['scan', 'label', 'split'], ['a', 'x', 'dev']], "is 'dev', wanted one"),
    (
      [['scan', 'label', 'split'], ['a', 'x', 'train'], ['a', 'x', 'test']],
      'a is in the splits test, train',
    ),
    (
      [['scan', 'label', 'split'], ['a', 'x', 'train'], ['./a', 'x', 'test']],
      'a is in the splits test, train',
    ),
    ([['scan', 'label'], ['a', 'x'], ['./a', 'x']], '2 rows of a, wanted one'),
    (
      [
        ['scan', 'x', 'y', 'z', 'label'],
        ['a', 1, 2, 3, 'x'],
        ['a', 1, 2, 4, 'x'],
        ['a', 1.0, 2, 3, 'y'],
      ],
      '2 rows of a at 1.0 2.0 3.0 mm, wanted one',
    ),
    (
      [['scan', 'label'], ['s3://b/a', 'x']],
      'line 2: scan is s3://b/a, an address',
    ),
    ([['scan', 'label', 'label'], ['a', 'x', 'y']], 'has the columns'),
    ([['scan', 'label'], ['a\0b', 'x']], 'line 2: scan has a NUL'),
    ([['scan', 'mask'], ['a', 'a\0b']], 'line 2: mask has a NUL'),
  ],
)
def test_refuses_tables(rows, line, tmp_path):
  _write(tmp_path, rows)
  with pytest.raises(errors.UserError, match=line):
    label_table.read(str(tmp_path), ('x', 'y'))


@pytest.mark.parametrize(
  ('field', 'value', 'wanted'),
  [
    ('classes', 'benign', 'a list of different names'),
    ('classes', ['a', 'a'], 'a list of different names'),
    ('classes', [1, 2], 'a list of different names'),
    ('whole_scan', 'false', 'true or false'),
    ('strict', 'false', 'true or false'),
  ],
)
def test_refuses_settings(field, value, wanted):
  task = 'classification' if field == 'classes' else 'segmentation'
  fields = {'name': 'mine', 'task': task, field: value}
  with pytest.raises(errors.UserError, match=f'{field} must be {wanted}'):
    labelled_scans.Builder.builder_config_cls(**fields)


def test_refuses_settings_of_the_other_task():
  for task, field, value in (
    ('segmentation', 'classes', ['a', 'b']),
    ('classification', 'jitter_mm', 3.0),
    ('classification', 'mask_cubes', 2),
  ):
    with pytest.raises(errors.UserError, match=f'{field} is for .* not for'):
      labelled_scans.Builder.builder_config_cls(
        name='mine', task=task, **{field: value}
      )


def test_a_table_that_is_no_text(tmp_path):
  (tmp_path / 'labels.csv').write_bytes(b'scan,label\n\xff\xfe,a\n')
  with pytest.raises(errors.UserError, match=r'labels\.csv line'):
    label_table.read(str(tmp_path))


def test_no_table(tmp_path):
  with pytest.raises(errors.UserError, match=r'no labels\.csv in'):
    label_table.read(str(tmp_path))


def test_an_empty_class_is_named(folder, tmp_path):
  rows = [
    [_scan(n), 'a' if n else 'b', 'train' if n else 'test'] for n in range(6)
  ]
  _write(folder, [['scan', 'label', 'split'], *rows])
  with pytest.raises(errors.UserError, match='has no b for train'):
    _build(folder, tmp_path / 'data', 'classification')


def test_scans_are_divided_by_name_alone():
  names = [f's{n}' for n in range(100)]
  found = label_table.divide(names)
  counts = [list(found.values()).count(one) for one in label_table.SPLITS]
  assert counts == [70, 15, 15]
  assert found == label_table.divide(set(reversed(names)))
  for count, want in ((1, {'train'}), (2, {'train', 'validation'})):
    assert set(label_table.divide(names[:count]).values()) == want
  assert len(set(label_table.divide(names[:3]).values())) == 3


def test_an_absolute_path_is_the_same_scan(tmp_path):
  inside, outside = str(tmp_path / 'a'), '/elsewhere/b'
  _write(tmp_path, [['scan', 'label'], [inside, 'x'], [outside, 'y']])
  table = label_table.read(str(tmp_path))
  assert [row.scan for row in table.rows] == [outside, 'a']
  _write(tmp_path, [['scan', 'label'], ['a', 'x'], [inside, 'y']])
  with pytest.raises(errors.UserError, match='2 rows of a, wanted one'):
    label_table.read(str(tmp_path))


def test_a_scan_has_one_name(tmp_path):
  """Else it could be in training and in the test."""
  folder = tmp_path / 'scans'
  folder.mkdir()
  (tmp_path / 'link').symlink_to(folder)
  for other in ('../scans/a', str(tmp_path / 'link' / 'a')):
    _write(
      folder,
      [['scan', 'label', 'split'], ['a', 'x', 'train'], [other, 'y', 'test']],
    )
    with pytest.raises(errors.UserError, match='are one scan, wanted one name'):
      label_table.read(str(folder))
