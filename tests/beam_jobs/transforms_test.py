"""The two passes over scans, scan by scan."""

import os

import numpy as np
import pytest

from beam_jobs import transforms
from tests.beam_jobs import tiny_scans
from transvw_tf2 import schema
from transvw_tf2.discovery import descriptors
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16

_SETTINGS = settings_lib.Settings(xy_border=4, z_border=4)


def _scan_file(folder, index=0, split=schema.TRAIN, size=tiny_scans.SIZE):
  scan_id = tiny_scans.write_scan(folder, index, size)
  return luna16.ScanFile(scan_id, os.path.join(folder, f'{scan_id}.mhd'), split)


def _instance(scan_id, word, resolution, origin, side, split=schema.TRAIN):
  return vocabulary.Instance(
    split=split,
    word=word,
    rank=3,
    resolution=resolution,
    scan_id=scan_id,
    origin=origin,
    size=(side, side, 32),
    distance=0.25,
  )


def _stop(folder):
  return transforms.StopFile(os.path.join(folder, 'stop'))


def test_a_scan_is_summarised(tmp_path):
  scan_file = _scan_file(tmp_path)
  (row,) = transforms.SummariseScanFn(_SETTINGS, None).process(scan_file)
  assert set(row) == set(transforms.SUMMARY_SCHEMA.names)
  assert (row['scan_id'], row['split']) == (scan_file.scan_id, schema.TRAIN)
  assert (row['reason'], row['detail'], row['border_reduced']) == (
    '',
    '',
    False,
  )
  assert row['size'] == list(tiny_scans.SIZE)
  thumbnail = np.frombuffer(row['thumbnail'], '<f4').reshape(32, 32, 16)
  np.testing.assert_allclose(
    thumbnail, descriptors.make_thumbnail(tiny_scans.make_hu(0)), atol=1e-6
  )
  # Inclusive [border, size - cube - 1 - border], and 3 slices less along z.
  candidates = np.reshape(row['candidates'], (-1, 3))
  assert len(candidates) > 0
  assert candidates.min(axis=0).tolist() >= [4, 4, 4]
  assert (candidates <= [11, 11, 8]).all()


def test_a_summary_is_the_same_each_time_and_changes_with_the_seed(tmp_path):
  scan_file = _scan_file(tmp_path)

  def rows(seed):
    settings = settings_lib.Settings(xy_border=4, z_border=4, seed=seed)
    return list(transforms.SummariseScanFn(settings, None).process(scan_file))

  assert rows(1) == rows(1)
  assert rows(1)[0]['candidates'] != rows(2)[0]['candidates']


def test_a_validation_scan_is_never_a_reference(tmp_path):
  scan_file = _scan_file(tmp_path, split=schema.VALIDATION)
  (row,) = transforms.SummariseScanFn(_SETTINGS, None).process(scan_file)
  assert row['candidates'] == []
  assert len(row['thumbnail']) == 32 * 32 * 16 * 4


def test_bad_scans_give_a_row_with_the_reason(tmp_path):
  expected = tiny_scans.write_bad(tmp_path)
  summarise = transforms.SummariseScanFn(_SETTINGS, None)
  for scan_id, reason in expected.items():
    path = str(tmp_path / f'{scan_id}.mhd')
    (row,) = summarise.process(luna16.ScanFile(scan_id, path, schema.TRAIN))
    assert set(row) == set(transforms.SUMMARY_SCHEMA.names)
    assert (row['scan_id'], row['reason']) == (scan_id, reason)
    assert scan_id in row['detail']


def test_a_bad_scan_stops_a_strict_pass(tmp_path):
  good = _scan_file(tmp_path)
  missing = luna16.ScanFile('gone', str(tmp_path / 'gone.mhd'), schema.TRAIN)
  stop = _stop(tmp_path)
  summarise = transforms.SummariseScanFn(_SETTINGS, stop)
  assert len(list(summarise.process(good))) == 1
  assert stop.read() == ''
  list(summarise.process(missing))
  assert stop.read() == f'missing_file: {missing.path} does not exist'
  assert list(summarise.process(good)) == []


def test_a_border_that_does_not_fit(tmp_path):
  scan_file = _scan_file(tmp_path)
  settings = settings_lib.Settings(xy_border=8, z_border=4)
  (row,) = transforms.SummariseScanFn(settings, None).process(scan_file)
  assert row['border_reduced'] and not row['reason']
  stop = _stop(tmp_path)
  list(transforms.SummariseScanFn(settings, stop).process(scan_file))
  line = stop.read()
  assert line.startswith(f'border_too_large: {scan_file.path} has 80 x 80 x 48')
  assert 'xy_border 8 and z_border 4' in line


def test_the_first_line_of_a_stop_file_stays(tmp_path):
  stop = _stop(tmp_path)
  stop.write('one')
  stop.write('two')
  assert stop.read() == 'one'


def test_requests_are_grouped_by_scan():
  scan_files = [
    luna16.ScanFile(name, f'/{name}.mhd', schema.TRAIN) for name in 'abc'
  ]
  instances = [
    _instance('c', 1, 0, (0, 0, 0), 64),
    _instance('a', 1, 0, (0, 0, 0), 64),
    _instance('c', 0, 1, (0, 0, 0), 50),
    _instance('c', 0, 0, (0, 0, 0), 64),
  ]
  requests = transforms.group_requests(scan_files, instances, '/cubes')
  assert [one.scan_file.scan_id for one in requests] == ['a', 'c']
  assert requests[1].instances == (instances[3], instances[2], instances[0])
  assert len({one.output for one in requests}) == 2
  assert all(os.path.dirname(one.output) == '/cubes' for one in requests)
  backward = transforms.group_requests(
    scan_files[::-1], instances[::-1], '/cubes'
  )
  assert backward == requests
  with pytest.raises(KeyError, match='a'):
    transforms.group_requests(scan_files[1:], instances, '/cubes')


def test_cubes_are_cut_and_read_back(tmp_path):
  scan_file = _scan_file(tmp_path, index=2)
  scan_id = scan_file.scan_id
  instances = (
    _instance(scan_id, 0, 0, (3, 9, 11), 64),
    _instance(scan_id, 0, 1, (1, 20, 11), 57),
    _instance(scan_id, 7, 2, (0, 1, 16), 79),
  )
  request = transforms.CutRequest(
    scan_file, instances, str(tmp_path / 'cubes.npy')
  )
  stop = _stop(tmp_path)
  cut = list(transforms.CutCubesFn(stop).process(request))
  assert (cut, stop.read()) == ([request.output], '')
  hu = tiny_scans.make_hu(2)
  examples = list(transforms.read_examples(request))
  assert [key for key, _ in examples] == [
    '1.2.840.002/0000/0',
    '1.2.840.002/0000/1',
    '1.2.840.002/0007/2',
  ]
  for (_, example), one in zip(examples, instances, strict=True):
    cube = example['cube']
    assert (cube.shape, cube.dtype) == (schema.CUBE_SHAPE, np.int16)
    np.testing.assert_allclose(
      cube, tiny_scans.expected_cube(hu, one.origin, one.size), atol=0.501
    )
    assert example['spacing'].tolist() == [0.5 + 2 / 64, 0.75, 2.5]
    assert example['origin'].tolist() == list(one.origin)
    assert example['size'].tolist() == list(one.size)
    assert example['scan_id'] == scan_id
    assert (example['rank'], example['distance']) == (3, 0.25)
    assert (example['word'], example['resolution']) == (
      one.word,
      one.resolution,
    )
  # Nothing but the scan and the cubes.
  assert sorted(os.listdir(tmp_path)) == [
    '1.2.840.002.mhd',
    '1.2.840.002.raw',
    'cubes.npy',
  ]


def test_reading_examples_can_remove_the_cubes(tmp_path):
  scan_file = _scan_file(tmp_path)
  instances = (_instance(scan_file.scan_id, 0, 0, (0, 0, 0), 64),)
  requests = [
    transforms.CutRequest(scan_file, instances, str(tmp_path / f'{name}.npy'))
    for name in 'ab'
  ]
  for request in requests:
    list(transforms.CutCubesFn(_stop(tmp_path)).process(request))
  examples = transforms.read_and_remove_examples(requests)
  next(examples)
  assert os.path.exists(requests[0].output)
  next(examples)
  assert not os.path.exists(requests[0].output)
  assert list(examples) == []
  assert not os.path.exists(requests[1].output)


def test_a_box_outside_the_scan_stops_the_pass(tmp_path):
  scan_file = _scan_file(tmp_path)
  instances = (_instance(scan_file.scan_id, 0, 0, (17, 0, 0), 64),)
  request = transforms.CutRequest(
    scan_file, instances, str(tmp_path / 'cubes.npy')
  )
  stop = _stop(tmp_path)
  cut = transforms.CutCubesFn(stop)
  assert list(cut.process(request)) == []
  assert scan_file.path in stop.read()
  assert 'does not lie inside' in stop.read()
  assert not os.path.exists(request.output)
