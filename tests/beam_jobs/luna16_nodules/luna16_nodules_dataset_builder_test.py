"""The target tasks of LUNA16, built in this process from tiny scans."""

import contextlib
import csv
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import luna16_nodules
from beam_jobs import nodule_requests
from beam_jobs import target_cubes
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)
_SHAPE = (16, 16, 8)
_DIAMETER = 12.0
_LARGEST_SPACING = (0.6, 0.75, 2.5)  # mm, of tiny_scans.make_geometry


def _point(scans, scan_id, voxel):
  """Returns world mm of a voxel, by SimpleITK."""
  image = sitk.ReadImage(scans[scan_id])
  return image.TransformIndexToPhysicalPoint(voxel)


def _write_csv(path, header, rows):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows([header, *rows])


def _write_masks(folder, scans):
  os.makedirs(folder)
  for number, (scan_id, path) in enumerate(sorted(scans.items())):
    hu = np.zeros(tiny_scans.SIZE, np.int16)
    hu[10:30, 20:60, 8:40] = 3
    hu[50:70, 20:60, 8:40] = 4
    hu[38:42, 38:42, 20:40] = 5  # trachea
    if number == 0:
      hu[:] = 0
    reader.write_scan(
      os.path.join(folder, f'{scan_id}.mhd'), hu, reader.read_geometry(path)
    )


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('luna16')
  tiny_scans.write_luna16(folder, train=4, validation=1, held_out=2)
  scans = {one.scan_id: one.path for one in luna16.find_scans(folder)}
  candidates, annotations = [], []
  for scan_id in scans:
    voxels = [(20, 30, 20), (60, 50, 30), (40, 40, 24), (2, 3, 1), (30, 60, 40)]
    for number, voxel in enumerate(voxels):
      point = _point(scans, scan_id, voxel)
      candidates.append([scan_id, *point, int(number == 0)])
      if number == 0:
        annotations.append([scan_id, *point, _DIAMETER])
  first = candidates[0][0]
  candidates.append([first, 9999.0, 0.0, 0.0, 1])
  candidates.append(['1.2.3', 0.0, 0.0, 0.0, 0])
  place = ['coordX', 'coordY', 'coordZ']
  _write_csv(
    folder / 'candidates_V2.csv', ['seriesuid', *place, 'class'], candidates
  )
  _write_csv(
    folder / 'annotations.csv',
    ['seriesuid', *place, 'diameter_mm'],
    annotations,
  )
  _write_masks(folder / 'seg-lungs-LUNA16', scans)
  return folder


def _build(folder, data_dir, **config):
  config = {'name': 'tiny', 'cube_shape': _SHAPE} | config
  builder = luna16_nodules.Builder(
    data_dir=str(data_dir),
    config=luna16_nodules.Builder.builder_config_cls(**config),
  )
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=str(folder))
  )
  return builder


def _make_requests(folder, **config):
  """Returns the requests of settings, by scan id."""
  requests, _ = nodule_requests.make_requests(
    str(folder),
    luna16.find_scans(folder),
    luna16_nodules.Builder.builder_config_cls(
      **({'name': 'tiny', 'cube_shape': _SHAPE} | config)
    ),
    'cubes',
  )
  return {one.scan_file.scan_id: one for one in requests}


def _cut(folder, **config):
  """Returns the arrays of the cubes of all scans that have any, by scan id."""
  found = {}
  for scan_id, request in _make_requests(folder, **config).items():
    with contextlib.suppress(reader.ScanError):
      _, found[scan_id] = target_cubes.find_and_cut(request)
  return found


def _origins_mm(cut):
  """Returns the corners of all boxes in mm of their scans, float (N, 3)."""
  return np.concatenate(
    [one['origin'] * one['spacing'].astype(np.float64) for one in cut.values()]
  )


def _assert_moved(folder, origins, **config):
  """Checks that cubes lie up to 10 mm from where they lie without jitter."""
  moved = np.abs(_origins_mm(_cut(folder, jitter_mm=10.0, **config)) - origins)
  # Either box begins at a voxel.
  assert np.all(moved <= 10.0 + np.array(_LARGEST_SPACING))
  assert np.all(moved.max(axis=0) > 4.0)


def _copy_links(folder, other, leave_out):
  """Makes a folder that has all of another, but for one name."""
  os.makedirs(other)
  for name in os.listdir(folder):
    if name != leave_out:
      os.symlink(folder / name, other / name)
  return other


def _examples(builder, split):
  return list(tfds.as_numpy(builder.as_dataset(split=split)))


def _rejected(builder):
  path = os.path.join(builder.data_path, 'rejected.csv')
  with open(path, encoding='utf-8') as file:
    return [tuple(row.values()) for row in csv.DictReader(file)]


def test_candidates(folder, tmp_path, capsys):
  builder = _build(
    folder,
    tmp_path,
    task='false_positive_reduction',
    negatives_per_positive=2,
  )
  counts = {name: one.num_examples for name, one in builder.info.splits.items()}
  # One nodule and two others of each scan, on average over a split; and two
  # for the nodule that lies outside.
  assert counts == {'train': 14, 'validation': 3, 'test': 6}
  out = capsys.readouterr().out
  assert 'train 14 (10 not_nodule, 4 nodule)' in out
  assert 'rejected: 1 outside_scan, 1 unknown_seriesuid' in out
  assert [row[1] for row in sorted(_rejected(builder), key=lambda r: r[1])] == [
    'outside_scan',
    'unknown_seriesuid',
  ]
  scans = {one.scan_id: one.path for one in luna16.find_scans(folder)}
  with open(folder / 'candidates_V2.csv', encoding='utf-8') as file:
    candidates = [tuple(row.values()) for row in csv.DictReader(file)]
  for example in _examples(builder, 'train'):
    scan_id = example['scan_id'].decode()
    place = tuple(map(str, example['place'].tolist()))
    assert (scan_id, *place, str(example['label'])) in candidates
    hu = sitk.GetArrayFromImage(sitk.ReadImage(scans[scan_id])).T
    padded = np.pad(hu, 16, constant_values=-1000)
    x, y, z = example['origin'] + 16
    want = np.clip(padded[x : x + 16, y : y + 16, z : z + 8], -1000, 1000)
    np.testing.assert_array_equal(example['cube'], want)
    if example['label'] == 1:
      # The voxel of the candidate is in the middle.
      np.testing.assert_array_equal(example['origin'], (12, 22, 16))


def test_the_negatives_are_drawn_by_seed(folder):
  def draw(seed):
    requests = _make_requests(
      folder,
      task='false_positive_reduction',
      negatives_per_positive=2,
      seed=seed,
    )
    return tuple(
      {
        (scan_id, point)
        for scan_id, one in requests.items()
        for point, label in one.places.points
        if label == wanted
      }
      for wanted in (1, 0)
    )

  nodules, others = draw(1)
  assert draw(1) == (nodules, others)
  again, different = draw(2)
  assert again == nodules
  assert len(different) == len(others)
  assert different != others


def test_all_negatives_can_be_had(folder, tmp_path):
  builder = _build(
    folder,
    tmp_path,
    task='false_positive_reduction',
    negatives_per_positive=None,
  )
  assert builder.info.splits['test'].num_examples == 2 * 5
  # Whatever the order of the file.
  other = _copy_links(folder, tmp_path / 'other', 'candidates_V2.csv')
  header, *rows = (folder / 'candidates_V2.csv').read_text().splitlines()
  (other / 'candidates_V2.csv').write_text('\n'.join([header, *rows[::-1]]))
  again = _build(
    other,
    tmp_path / 'again',
    task='false_positive_reduction',
    negatives_per_positive=None,
  )
  assert _hashes(again.data_path) == _hashes(builder.data_path)


def test_a_split_without_usable_scans_is_left_out(folder, tmp_path, capsys):
  partial = _copy_links(folder, tmp_path / 'partial', 'subset5')
  os.makedirs(partial / 'subset5')
  for path in (folder / 'subset5').glob('*.mhd'):
    os.symlink(path, partial / 'subset5' / path.name)
  settings = {'task': 'nodule_segmentation'}
  builder = _build(partial, tmp_path / 'data', **settings)
  assert sorted(builder.info.splits) == ['test', 'train']
  assert [row[1] for row in _rejected(builder)] == [
    'empty_split',
    'missing_raw',
  ]
  assert 'rejected: 1 empty_split, 1 missing_raw' in capsys.readouterr().out
  with pytest.raises(errors.UserError, match=r'strict: .*: missing_raw: '):
    _build(partial, tmp_path / 'strict', strict=True, **settings)


def test_a_class_that_a_split_lacks_is_named(folder, tmp_path):
  other = _copy_links(folder, tmp_path / 'other', 'candidates_V2.csv')
  held_out = {
    one.scan_id
    for one in luna16.find_scans(folder)
    if one.split == schema.HELD_OUT
  }
  lines = (folder / 'candidates_V2.csv').read_text().splitlines()
  kept = [
    line
    for line in lines
    if line.split(',')[0] not in held_out or line.endswith('1')
  ]
  (other / 'candidates_V2.csv').write_text('\n'.join(kept))
  builder = _build(other, tmp_path / 'data', task='false_positive_reduction')
  assert ('', 'empty_class', 'test has no not_nodule') in _rejected(builder)


@pytest.mark.parametrize(
  ('task', 'name', 'line'),
  [
    ('false_positive_reduction', 'candidates_V2.csv', 'no rows in cand'),
    ('nodule_segmentation', 'annotations.csv', 'no rows in annotations.csv'),
    ('lung_segmentation', 'seg-lungs-LUNA16', 'no mask of these scans'),
  ],
)
def test_an_empty_file_is_as_one_that_is_missing(
  folder, tmp_path, task, name, line
):
  other = _copy_links(folder, tmp_path / 'other', name)
  if name.endswith('.csv'):
    header = (folder / name).read_text().splitlines()[0]
    (other / name).write_text(header + '\n')
  else:
    os.makedirs(other / name)
  with pytest.raises(builders.NotForThisTaskError, match=line):
    _build(other, tmp_path / 'data', task=task)


def test_nodules_are_balls(folder, tmp_path):
  builder = _build(
    folder,
    tmp_path,
    task='nodule_segmentation',
    cube_shape=(32, 32, 16),
    extent_mm=(32, 32, 32),
  )
  examples = _examples(builder, 'train')
  assert len(examples) == 4
  for example in examples:
    # Boxes of whole voxels near 32 mm.
    voxel = np.prod(example['size'] * example['spacing']) / (32 * 32 * 16)
    volume = example['mask'].sum() * voxel
    assert volume == pytest.approx(np.pi / 6 * _DIAMETER**3, rel=0.1)
    middle = np.argwhere(example['mask']).mean(axis=0)
    np.testing.assert_allclose(middle, (15.5, 15.5, 7.5), atol=1.5)


def test_cubes_without_a_nodule_lie_in_the_lungs(folder):
  settings = {'task': 'nodule_segmentation'}
  for cut in _cut(folder, **settings).values():
    assert cut['mask'].any(axis=(1, 2, 3)).tolist() == [True]
  found = _cut(folder, without_nodule=3.0, **settings)
  assert len(found) == 7
  # The lung mask of the first scan is empty.
  without = [len(one['mask']) - 1 for one in found.values()]
  assert without == [0] + [3] * 6
  for scan_id, cut in found.items():
    assert cut['mask'][0].any()
    assert not cut['mask'][1:].any()
    path = os.path.join(folder, 'seg-lungs-LUNA16', f'{scan_id}.mhd')
    lungs = np.isin(sitk.GetArrayFromImage(sitk.ReadImage(path)).T, (3, 4))
    for x, y, z in cut['origin'][1:] + np.array(_SHAPE) // 2:
      assert lungs[x - 1 : x + 1, y - 1 : y + 1, z - 1 : z + 1].any()


def test_cubes_around_nodules_lie_by_seed_and_jitter(folder):
  settings = {'task': 'nodule_segmentation', 'cube_shape': (32, 32, 16)}
  origins = _origins_mm(_cut(folder, seed=1, **settings))
  _assert_moved(folder, origins, seed=1, **settings)
  # Without jitter all are around the nodules, whatever the seed.
  np.testing.assert_array_equal(
    _origins_mm(_cut(folder, seed=2, **settings)), origins
  )
  one, same, other = (
    _origins_mm(_cut(folder, seed=seed, jitter_mm=10.0, **settings))
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, same)
  assert np.any(one != other, axis=1).all()


def test_cubes_of_the_lungs_lie_by_seed_and_jitter(folder):
  settings = {'task': 'lung_segmentation', 'lung_cubes': 5}
  one, same, other = (
    _origins_mm(_cut(folder, seed=seed, **settings)) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, same)
  assert np.any(one != other, axis=1).all()
  # The same voxels of the mask, moved.
  _assert_moved(folder, one, seed=1, **settings)


def test_lungs(folder, tmp_path, capsys):
  builder = _build(
    folder, tmp_path, task='lung_segmentation', lung_cubes=3, seed=5
  )
  assert builder.info.splits['test'].num_examples == 2 * 3
  assert [row[1] for row in _rejected(builder)] == ['mask_empty']
  for example in _examples(builder, 'test'):
    path = os.path.join(
      folder, 'seg-lungs-LUNA16', f'{example["scan_id"].decode()}.mhd'
    )
    image = sitk.ReadImage(path)
    middle = example['origin'] + (example['size'] - 1) / 2
    np.testing.assert_allclose(
      example['place'], image.TransformContinuousIndexToPhysicalPoint(middle)
    )
    values = sitk.GetArrayFromImage(image).T
    lungs = np.pad(np.isin(values, (3, 4)), 16)
    x, y, z = example['origin'] + 16
    want = lungs[x : x + 16, y : y + 16, z : z + 8]
    np.testing.assert_array_equal(example['mask'], want)
    # The middle of the cube lies in a lung.
    assert want[7:9, 7:9, 3:5].any()


def test_a_mask_of_another_geometry_is_named(folder, tmp_path):
  scans = {one.scan_id: one.path for one in luna16.find_scans(folder)}
  masks = tmp_path / 'masks'
  os.makedirs(masks)
  for number, (scan_id, path) in enumerate(sorted(scans.items())):
    image = sitk.ReadImage(path)
    mask = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    mask.CopyInformation(image)
    mask[20, 30, 20] = 1
    if number == 1:
      mask.SetSpacing((9.0, 9.0, 9.0))
    if number != 2:
      sitk.WriteImage(mask, str(masks / f'{scan_id}.nii.gz'))
  settings = {
    'task': 'nodule_segmentation',
    'cube_shape': (32, 32, 16),
    'masks': str(masks),
  }
  builder = _build(folder, tmp_path / 'data', **settings)
  assert {row[1] for row in _rejected(builder)} == {
    'mask_geometry',
    'missing_mask',
  }
  for example in _examples(builder, 'train'):
    assert example['mask'].sum() == 1
  with pytest.raises(errors.UserError, match='strict: '):
    _build(folder, tmp_path / 'strict', strict=True, **settings)


@pytest.mark.parametrize(
  ('config', 'line'),
  [
    ({'task': 'liver'}, 'task must be one of'),
    ({'task': 'lung_segmentation', 'cube_shape': (30, 32, 16)}, 'cube_shape'),
    ({'task': 'lung_segmentation', 'lung_cubes': 0}, 'lung_cubes is 0'),
    ({'task': 'lung_segmentation', 'lung_cubes': '3'}, "is '3', wanted an int"),
    ({'task': 'lung_segmentation', 'lungs': 1}, 'unknown config field'),
    (
      {'task': 'lung_segmentation', 'without_nodule': 1},
      'without_nodule is for nodule_segmentation, not for lung_segmentation',
    ),
    ({'task': 'nodule_segmentation', 'masks': 3}, 'masks must be a folder'),
  ],
)
def test_refuses_settings(config, line):
  with pytest.raises(errors.UserError, match=line):
    luna16_nodules.Builder.builder_config_cls(name='bad', **config)


def test_no_nodule_for_training_is_refused(folder, tmp_path):
  one = tmp_path / 'one'
  tiny_scans.write_luna16(one, train=1, validation=1, held_out=0)
  (scan,) = [s for s in luna16.find_scans(one) if s.split == 'train']
  _write_csv(
    one / 'candidates_V2.csv',
    ['seriesuid', 'coordX', 'coordY', 'coordZ', 'class'],
    [
      [
        scan.scan_id,
        *_point({scan.scan_id: scan.path}, scan.scan_id, (9, 9, 9)),
        0,
      ]
    ],
  )
  with pytest.raises(errors.UserError, match='has no nodule for train'):
    _build(
      one,
      tmp_path / 'data',
      task='false_positive_reduction',
      negatives_per_positive=None,
    )


def _run_tfds(*arguments, cwd):
  return subprocess.run(
    [os.path.join(os.path.dirname(sys.executable), 'tfds'), *arguments],
    capture_output=True,
    # Progress bars are drawn in UTF-8, whatever the locale.
    encoding='utf-8',
    cwd=cwd,
    stdin=subprocess.DEVNULL,
    check=False,
  )


def _hashes(folder):
  return {
    name: hashlib.sha256(
      open(os.path.join(folder, name), 'rb').read()
    ).hexdigest()
    for name in os.listdir(folder)
    if name != 'dataset_info.json'  # holds the name of the module
  }


@pytest.mark.long
def test_plain_build_makes_what_it_can_with_any_number_of_processes(
  folder, tmp_path
):
  # Without annotations: two of the three tasks.
  partial = _copy_links(folder, tmp_path / 'partial', 'annotations.csv')
  done = _run_tfds(
    *('build', 'luna16_nodules', f'--manual_dir={partial}'),
    f'--data_dir={tmp_path / "one"}',
    cwd=os.path.join(_ROOT, 'beam_jobs'),
  )
  assert done.returncode == 0, done.stderr
  assert 'nodule_segmentation is left out: no annotations.csv' in done.stdout
  one = tmp_path / 'one' / 'luna16_nodules'
  assert not os.path.exists(one / 'nodule_segmentation' / '1.1.0')
  done = _run_tfds(
    *('build', 'luna16_nodules', '--imports=beam_jobs.luna16_nodules'),
    f'--manual_dir={partial}',
    f'--data_dir={tmp_path / "two"}',
    '--beam_pipeline_options=runner=FnApiRunner,direct_num_workers=2,'
    'direct_running_mode=multi_processing',
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  two = tmp_path / 'two' / 'luna16_nodules'
  for task in ('false_positive_reduction', 'lung_segmentation'):
    found = _hashes(one / task / '1.1.0')
    assert found == _hashes(two / task / '1.1.0')
    assert 'rejected.csv' in found
  # Asked for by name, it is an error.
  done = _run_tfds(
    *('build', 'luna16_nodules/nodule_segmentation'),
    '--imports=beam_jobs.luna16_nodules',
    f'--manual_dir={partial}',
    f'--data_dir={tmp_path / "three"}',
    cwd=tmp_path,
  )
  assert done.returncode != 0
  assert 'no annotations.csv in' in done.stderr.strip().splitlines()[-1]
