"""Discovery from a folder of scans to the files of the vocabulary."""

import collections
import csv
import dataclasses
import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest

from beam_jobs import discovery
from beam_jobs import pipelines
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import descriptors
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader

_FILES = [
  *('counters.json', 'descriptors.npz', 'instances.csv', 'rejected.csv'),
  'vocabulary.json',
]
_SETTINGS = settings_lib.Settings(
  words=3,
  instances=3,
  validation_instances=1,
  xy_border=4,
  z_border=4,
  min_distance=1.0,
)


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  return tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'), train=5)


@pytest.fixture(scope='module')
def found(scans, tmp_path_factory):
  """The folder of a vocabulary and what discovery returned."""
  folder = str(tmp_path_factory.mktemp('found'))
  return folder, discovery.discover(luna16.find_scans(scans), folder, _SETTINGS)


def _read(folder):
  return {
    name: open(os.path.join(folder, name), 'rb').read()
    for name in sorted(os.listdir(folder))
  }


def _rows(folder, name):
  with open(os.path.join(folder, name), newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_discovery_writes_the_vocabulary_files_and_nothing_else(found):
  folder, result = found
  assert sorted(os.listdir(folder)) == _FILES
  assert len(result.vocabulary.words) == 3
  with open(os.path.join(folder, 'vocabulary.json'), encoding='utf-8') as file:
    contents = json.load(file)
  assert contents['settings'] == dataclasses.asdict(_SETTINGS)
  assert len(contents['words']) == 3
  # 3 words, 3 patients in 3 resolutions and 1 validation patient in one.
  rows = _rows(folder, 'instances.csv')
  assert collections.Counter(
    (row['split'], row['word'], row['resolution']) for row in rows
  ) == {
    **{
      (schema.TRAIN, str(word), str(resolution)): 3
      for word in range(3)
      for resolution in range(3)
    },
    **{(schema.VALIDATION, str(word), '0'): 1 for word in range(3)},
  }
  assert _rows(folder, 'rejected.csv') == []
  assert vocabulary.read_vocabulary(folder) == result.vocabulary
  assert (result.scans_read, result.reduced_borders) == (7, 0)
  assert result.summary_lines() == [
    'scans: 7 read, 0 rejected',
    'words: 3, cubes: 30',
  ]


def test_instances_are_the_nearest_patients(found, scans):
  folder, result = found
  with np.load(os.path.join(folder, 'descriptors.npz')) as file:
    by_id = dict(zip(file['scan_id'], file['descriptors'], strict=True))
  split_of = {one.scan_id: one.split for one in luna16.find_scans(scans)}
  for word in result.vocabulary.words:
    for split, count in ((schema.TRAIN, 3), (schema.VALIDATION, 1)):
      distances = {
        scan_id: np.linalg.norm(
          np.float64(descriptor) - np.float64(by_id[word.scan_id])
        )
        for scan_id, descriptor in by_id.items()
        if split_of[scan_id] == split
      }
      nearest = sorted(distances, key=distances.get)[:count]
      mine = [
        one
        for one in result.vocabulary.instances
        if (one.word, one.split, one.resolution) == (word.word, split, 0)
      ]
      assert [one.scan_id for one in mine] == nearest
      assert [one.rank for one in mine] == list(range(count))
      np.testing.assert_allclose(
        [one.distance for one in mine],
        [distances[scan_id] for scan_id in nearest],
        atol=1e-6,
      )


def test_descriptors_keep_the_distances_of_training_scans(found, scans):
  folder, _ = found
  with np.load(os.path.join(folder, 'descriptors.npz')) as file:
    scan_ids, matrix = file['scan_id'].tolist(), file['descriptors']
  wanted = [
    one for one in luna16.find_scans(scans) if one.split != schema.HELD_OUT
  ]
  assert scan_ids == sorted(one.scan_id for one in wanted)
  assert (matrix.shape, matrix.dtype) == ((7, 4), np.float32)
  # n training scans span n - 1 components, so nothing of them is lost.
  train = [one for one in wanted if one.split == schema.TRAIN]
  thumbnails = {
    one.scan_id: descriptors.make_thumbnail(reader.read_scan(one.path).hu)
    for one in train
  }
  for one in train:
    for other in train:
      np.testing.assert_allclose(
        np.linalg.norm(
          matrix[scan_ids.index(one.scan_id)]
          - matrix[scan_ids.index(other.scan_id)]
        ),
        np.linalg.norm(thumbnails[one.scan_id] - thumbnails[other.scan_id]),
        atol=1e-4,
      )


def test_the_order_of_the_files_changes_nothing(found, scans, tmp_path):
  scan_files = luna16.find_scans(scans)
  np.random.default_rng(0).shuffle(scan_files)
  discovery.discover(scan_files, str(tmp_path), _SETTINGS)
  assert _read(tmp_path) == _read(found[0])


def test_the_seed_changes_the_words(found, scans, tmp_path):
  settings = dataclasses.replace(_SETTINGS, seed=2)
  other = discovery.discover(luna16.find_scans(scans), str(tmp_path), settings)
  assert other.vocabulary.words != found[1].vocabulary.words


def test_a_scan_is_read_once_in_each_pass(scans, tmp_path):
  scan_files = luna16.find_scans(scans)
  reads = collections.Counter()
  headers = collections.Counter()

  def counting(counter, original):
    def wrapped(path, **kwargs):
      counter[path] += 1
      return original(path, **kwargs)

    return mock.patch.object(reader, original.__name__, wrapped)

  with (
    counting(reads, reader.read_scan),
    counting(headers, reader.read_geometry),
  ):
    result = discovery.discover(scan_files, str(tmp_path), _SETTINGS)
    # 3 words in 3 resolutions of 3 patients: many cubes from each scan.
    assert len(result.vocabulary.instances) > len(scan_files)
    assert reads == {
      one.path: 1 for one in scan_files if one.split != schema.HELD_OUT
    }
    discovery.cut_cubes(
      scan_files, result.vocabulary.instances, str(tmp_path / 'cubes')
    )
  cut = {one.scan_id for one in result.vocabulary.instances}
  assert reads == {
    one.path: 1 + (one.scan_id in cut)
    for one in scan_files
    if one.split != schema.HELD_OUT
  }
  # At most the header of the scan that is read anyway.
  assert all(headers[path] <= reads[path] for path in headers)


def test_bad_scans_are_left_out_and_named(found, scans, tmp_path):
  good = luna16.find_scans(scans)
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'found').mkdir()
  expected = tiny_scans.write_bad(tmp_path / 'bad')
  bad = [
    luna16.ScanFile(
      scan_id, str(tmp_path / 'bad' / f'{scan_id}.mhd'), schema.TRAIN
    )
    for scan_id in expected
  ]
  folder = str(tmp_path / 'found')
  result = discovery.discover(bad + good, folder, _SETTINGS)
  rows = _rows(folder, 'rejected.csv')
  assert {row['scan']: row['reason'] for row in rows} == expected
  assert all(row['scan'] in row['detail'] for row in rows)
  assert (
    result.summary_lines()[0] == 'scans: 12 read, 5 rejected (1 missing_raw, '
    '1 not_3d, 1 too_small, 1 truncated, 1 unreadable)'
  )
  # The good ones give what they give without the bad ones.
  for name in set(_FILES) - {'rejected.csv', 'counters.json'}:
    assert _read(folder)[name] == _read(found[0])[name]


def test_strict_stops_with_one_line(scans, tmp_path):
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'found').mkdir()
  tiny_scans.write_bad(tmp_path / 'bad')
  path = str(tmp_path / 'bad' / 'missing.mhd')
  bad = luna16.ScanFile('missing', path, schema.VALIDATION)
  with pytest.raises(errors.UserError) as caught:
    discovery.discover(
      [*luna16.find_scans(scans), bad],
      str(tmp_path / 'found'),
      _SETTINGS,
      strict=True,
    )
  line = str(caught.value)
  assert line.startswith(
    f'strict: a scan cannot be used: missing_raw: {path} needs missing.raw'
  )
  assert '\n' not in line and 'while running' not in line
  assert os.listdir(tmp_path / 'found') == []


def test_borders_that_do_not_fit_are_reduced_or_refused(scans, tmp_path):
  settings = dataclasses.replace(_SETTINGS, xy_border=100)
  scan_files = luna16.find_scans(scans)
  result = discovery.discover(scan_files, str(tmp_path), settings)
  assert result.reduced_borders == 5
  assert (
    'warning: xy_border and z_border do not fit 5 scans and were reduced for'
    ' them' in result.summary_lines()
  )
  for word in result.vocabulary.words:
    # (80 - 64) // 4 = 4 along x and y; along z the border fits.
    assert all(4 <= corner <= 11 for corner in word.place[:2])
    assert 4 <= word.place[2] <= 8
  with pytest.raises(
    errors.UserError,
    match=r'border_too_large: .* has 80 x 80 x 48 voxels, where xy_border 100',
  ):
    discovery.discover(scan_files, str(tmp_path), settings, strict=True)


def test_a_folder_that_cannot_be_removed_hides_no_error(
  scans, tmp_path, monkeypatch
):
  def lose_the_disk(*_, **__):
    shutil.rmtree(tmp_path / 'summaries.tmp')
    raise errors.UserError('the disk is gone')

  monkeypatch.setattr(pipelines, 'run', lose_the_disk)
  with pytest.raises(errors.UserError, match='the disk is gone'):
    discovery.discover(luna16.find_scans(scans), str(tmp_path), _SETTINGS)


def test_no_training_scans(scans, tmp_path):
  held_out = [
    one for one in luna16.find_scans(scans) if one.split != schema.TRAIN
  ]
  with pytest.raises(errors.UserError, match='none of 3 scans belongs to the'):
    discovery.discover(held_out, str(tmp_path), _SETTINGS)


def test_too_few_usable_scans(scans, tmp_path):
  expected = tiny_scans.write_bad(tmp_path)
  bad = [
    luna16.ScanFile(scan_id, str(tmp_path / f'{scan_id}.mhd'), schema.TRAIN)
    for scan_id in expected
  ]
  one_good = luna16.find_scans(scans)[0]
  (tmp_path / 'found').mkdir()
  with pytest.raises(
    errors.UserError,
    match=r'1 usable training scans, at least 2 are needed; 6 scans were read,'
    r' 5 rejected \(.*\), first flat: not_3d: ',
  ):
    discovery.discover([*bad, one_good], str(tmp_path / 'found'), _SETTINGS)
  assert os.listdir(tmp_path / 'found') == []


def test_cutting_names_what_does_not_fit(found, scans, tmp_path):
  words = found[1].vocabulary
  scan_files = luna16.find_scans(scans)
  instance = words.instances[0]
  without = [one for one in scan_files if one.scan_id != instance.scan_id]
  with pytest.raises(
    errors.UserError,
    match=f'the vocabulary needs scan {instance.scan_id}, which is not among',
  ):
    discovery.cut_cubes(without, words.instances, str(tmp_path / 'one'))
  outside = dataclasses.replace(instance, origin=(40, 0, 0))
  with pytest.raises(
    errors.UserError, match=rf'no cubes can be cut: .*{instance.scan_id}'
  ):
    discovery.cut_cubes(scan_files, [outside], str(tmp_path / 'two'))


def test_scans_that_came_into_another_split_are_told(found, scans, caplog):
  scan_files = luna16.find_scans(scans)
  discovery.check_scans(scan_files, found[1].vocabulary)
  assert not caplog.messages
  one = found[1].vocabulary.instances[0]
  moved = [
    dataclasses.replace(other, split=schema.VALIDATION)
    if other.scan_id == one.scan_id
    else other
    for other in scan_files
  ]
  discovery.check_scans(moved, found[1].vocabulary)
  (line,) = caplog.messages
  assert line.startswith('1 scans lie in another split than in the vocabulary')
  assert f'{one.scan_id}, is now of validation, there of train' in line


def test_copying_a_vocabulary(found, tmp_path):
  folder, result = found
  assert discovery.copy_vocabulary(folder, str(tmp_path)) == result.vocabulary
  assert _read(tmp_path) == _read(folder)
  with pytest.raises(errors.UserError, match='no vocabulary in'):
    discovery.copy_vocabulary(str(tmp_path / 'gone'), str(tmp_path))


def test_more_words_are_added_to_a_vocabulary(found, scans, tmp_path):
  folder, result = found
  scan_files = luna16.find_scans(scans)
  more, fresh = str(tmp_path / 'more'), str(tmp_path / 'fresh')
  for path in (more, fresh):
    os.makedirs(path)
  settings = dataclasses.replace(_SETTINGS, words=5)
  # The other settings may be given, or left out.
  extended = discovery.discover(
    scan_files,
    more,
    settings_lib.Settings(words=5),
    extend=os.path.join(folder, 'vocabulary.json'),
  )
  assert extended.vocabulary.settings == settings
  assert len(extended.vocabulary.words) == 5
  assert extended.vocabulary.words[:3] == result.vocabulary.words
  old = _read(folder)['instances.csv'].splitlines()
  rows = _read(more)['instances.csv'].splitlines()
  assert [row for row in rows[1:] if int(row.split(b',')[1]) < 3] == old[1:]
  assert len(rows) == 1 + 5 * 10
  # Just what discovering all of them at once gives.
  discovery.discover(scan_files, fresh, settings)
  assert _read(more) == _read(fresh)


def test_vocabularies_that_cannot_be_extended(found, scans, tmp_path):
  folder, result = found
  scan_files = luna16.find_scans(scans)
  reads = mock.Mock(wraps=reader.read_scan)

  def refused(line, scan_files=scan_files, extend=folder, **changes):
    settings = settings_lib.Settings(**{'words': 5} | changes)
    with (
      pytest.raises(errors.UserError, match=line) as caught,
      mock.patch.object(reader, 'read_scan', reads),
    ):
      discovery.discover(scan_files, str(tmp_path), settings, extend=extend)
    assert '\n' not in str(caught.value)
    assert os.listdir(tmp_path) == []

  refused('no vocabulary in', extend=str(tmp_path / 'gone'))
  refused('words is 3, but .* has 3 already; give more', words=3)
  refused('seed is 2, but .* was made with 1; leave seed out', seed=2)
  refused('frame is lung, but .* was made with voxel', frame='lung')
  needed = result.vocabulary.instances[0].scan_id
  without = [one for one in scan_files if one.scan_id != needed]
  refused(f'the vocabulary needs scan {needed}, which is not', without)
  # All that before a scan is read.
  reads.assert_not_called()
  (tmp_path / 'scans').mkdir()
  extra = tiny_scans.write_scan(tmp_path / 'scans', 77)
  more = luna16.ScanFile(
    extra, str(tmp_path / 'scans' / f'{extra}.mhd'), schema.TRAIN
  )
  with pytest.raises(errors.UserError, match=r'cannot be extended: .* differ'):
    (tmp_path / 'found').mkdir()
    discovery.discover(
      [*scan_files, more],
      str(tmp_path / 'found'),
      settings_lib.Settings(words=5),
      extend=folder,
    )
  assert os.listdir(tmp_path / 'found') == []
