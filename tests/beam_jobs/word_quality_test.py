"""Quality of words, and both frames, on synthetic patients."""

import collections
import os
import shutil
from unittest import mock

import numpy as np
import pytest

from beam_jobs import discovery
from beam_jobs import transforms
from beam_jobs import word_quality
from transvw_tf2.discovery import cubes
from transvw_tf2.discovery import frames
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  """Patients who differ in position, size and voxels."""
  folder = str(tmp_path_factory.mktemp('scans') / 'phantoms')
  variation = phantom.Variation(
    translation_sd=12, rotation_sd=0, displacement_sd=0, scale=(0.9, 1.1)
  )
  phantom.write_luna16(folder, 10, (96, 96, 72), 5, variation)
  return folder


@pytest.fixture(scope='module')
def found(scans, tmp_path_factory):
  """What is found in each frame: the vocabulary, its quality and requests."""
  results = {}
  for frame in frames.FRAMES:
    folder = tmp_path_factory.mktemp(frame)
    scan_files = luna16.find_scans(scans)
    words = discovery.discover(
      scan_files, str(folder), settings_lib.Settings(frame=frame)
    ).vocabulary
    requests = discovery.cut_cubes(
      scan_files, words.instances, str(folder / 'cubes'), frame=frame
    )
    measured = word_quality.measure(requests, words, scans)
    results[frame] = words, measured, requests
  return results


def test_the_frame_of_the_lungs_finds_the_anatomy(found):
  voxel, lung = (found[frame][1].overall for frame in frames.FRAMES)
  assert len(found['lung'][0].words) == 5
  assert lung.error_mm < 5 < voxel.error_mm / 2
  assert lung.within > voxel.within + 0.1
  assert lung.silhouette > voxel.silhouette + 0.1


def test_errors_are_those_of_the_known_anatomy(found, scans):
  words, measured, _ = found['lung']
  truth = phantom.load_truth(scans)
  references = {word.word: word for word in words.words}
  native = [one for one in words.instances if one.resolution == 0]
  for one in native:
    word = references[one.word]
    middle = np.add(word.place, (31.5, 31.5, 15.5))
    place = truth[word.scan_id].template_coordinates(middle)
    # The same place in the patient, by the inverse transform.
    wanted = truth[one.scan_id].scan_voxels(place)
    spacing = truth[one.scan_id].geometry.spacing
    off = (np.add(one.origin, np.divide(one.size, 2)) - 0.5 - wanted) * spacing
    key = (one.split, one.word, one.rank)
    if one.scan_id == word.scan_id:
      assert key not in measured.errors_mm
      assert np.abs(off).max() < 1e-3
      continue
    # mm of the patient and of the template differ by the patient's size.
    ratio = measured.errors_mm[key] / np.linalg.norm(off)
    assert 1 / 1.11 <= ratio <= 1 / 0.89
  assert len(measured.errors_mm) == len(native) - len(words.words)


def test_cubes_of_the_lung_frame_are_resized_with_anti_aliasing(found, scans):
  words, _, requests = found['lung']
  by_id = {one.scan_id: one for one in luna16.find_scans(scans)}
  sizes = {one.size for one in words.instances if one.resolution == 0}
  assert len(sizes) > 3 and len({size[2] for size in sizes}) > 1
  for request in requests[:3]:
    scan = reader.read_scan(by_id[request.scan_file.scan_id].path)
    written = np.load(request.output)
    for record, one in zip(written, request.instances, strict=True):
      np.testing.assert_array_equal(
        record['cube'],
        cubes.cut_cube(scan.hu, one.origin, one.size, anti_aliasing=True),
      )


def test_scores_are_those_of_the_cubes(found):
  _, measured, requests = found['voxel']
  of_word = collections.defaultdict(list)
  for request in requests:
    written = np.load(request.output)
    for record, one in zip(written, request.instances, strict=True):
      if one.resolution == 0:
        of_word[one.word].append(record['cube'])
  assert set(measured.words) == set(of_word)
  for word, shown in of_word.items():
    scores = measured.words[word]
    assert scores.cubes == len(shown)
    assert scores.air == pytest.approx(
      np.mean(np.array(shown) <= -950), abs=1e-6
    )
    means = np.array(shown, float).reshape(-1, 16, 4, 16, 4, 8, 4)
    rows = means.mean((2, 4, 6)).reshape(len(shown), -1)
    pairs = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
    assert scores.within == pytest.approx(pairs.mean(), abs=1e-5)


def test_only_what_is_measured_is_cut_again(
  found, scans, tmp_path, monkeypatch
):
  words, measured, _ = found['lung']
  scan_files = luna16.find_scans(scans)
  read_scan = mock.Mock(wraps=reader.read_scan)
  with mock.patch.object(reader, 'read_scan', read_scan):
    again = word_quality.cut_and_measure(
      scan_files, words, scans, str(tmp_path)
    )
  assert again == measured
  assert os.listdir(tmp_path) == []
  reads = collections.Counter(call.args[0] for call in read_scan.mock_calls)
  assert set(reads.values()) == {1}
  monkeypatch.setattr(quality, 'MOST_CUBES', 10)
  few = word_quality.cut_and_measure(scan_files, words, scans, str(tmp_path))
  assert few.overall.cubes == 10
  assert few.errors_mm == measured.errors_mm


def test_without_known_anatomy_there_are_no_errors(found, scans, tmp_path):
  words, measured, requests = found['voxel']
  other = tmp_path / 'scans'
  other.mkdir()
  for name in os.listdir(scans):
    if name != phantom.SETTINGS_FILE:
      os.symlink(os.path.join(scans, name), other / name)
  unknown = word_quality.measure(requests, words, str(other))
  assert unknown.errors_mm == {}
  assert unknown.overall.error_mm is None
  assert unknown.overall.within == measured.overall.within


def test_a_scan_of_unknown_anatomy_costs_the_errors_alone(
  found, scans, tmp_path, caplog
):
  words, measured, requests = found['lung']
  folder = tmp_path / 'scans'
  for name in os.listdir(scans):
    (folder / name).parent.mkdir(exist_ok=True)
    os.symlink(os.path.join(scans, name), folder / name)
  os.remove(folder / phantom.TRANSFORM_FOLDER)
  os.mkdir(folder / phantom.TRANSFORM_FOLDER)
  with caplog.at_level('WARNING'):
    without = word_quality.measure(requests, words, str(folder))
  assert without.overall.error_mm is None
  assert without.overall.within == measured.overall.within
  assert 'true errors are not measured: no ' in caplog.text


def test_a_scan_that_was_rejected_costs_no_errors(found, scans, tmp_path):
  words, measured, requests = found['lung']
  folder = tmp_path / 'scans'
  folder.mkdir()
  for name in os.listdir(scans):
    if name != 'subset0':
      os.symlink(os.path.join(scans, name), folder / name)
  shutil.copytree(os.path.join(scans, 'subset0'), folder / 'subset0')
  (folder / 'subset0' / 'broken.mhd').write_text('broken')
  again = word_quality.measure(requests, words, str(folder))
  assert again.errors_mm == measured.errors_mm != {}


def test_pass_1_finds_lungs_only_where_they_are_wanted(scans):
  scan_file = luna16.find_scans(scans)[0]
  for frame, length in (('voxel', 0), ('lung', 3)):
    summarise = transforms.SummariseScanFn(
      settings_lib.Settings(frame=frame), None
    )
    (row,) = summarise.process(scan_file)
    assert set(row) == set(transforms.SUMMARY_SCHEMA.names)
    for name in ('low', 'high', 'low_cut', 'high_cut'):
      assert len(row[f'lungs_{name}']) == length
    assert len(row['spacing']) == 3


def test_the_order_of_the_files_changes_nothing(found, scans, tmp_path):
  backward = luna16.find_scans(scans)[::-1]
  again = discovery.discover(
    backward, str(tmp_path), settings_lib.Settings(frame='lung')
  )
  assert again.vocabulary == found['lung'][0]
