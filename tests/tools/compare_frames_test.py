"""The comparison of the frames, on a few small patients."""

import os
import re

from absl.testing import flagsaver
import pytest

from transvw_tf2 import errors
from transvw_tf2.discovery import quality
from transvw_tf2.scans import phantom


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  folder = os.fspath(tmp_path_factory.mktemp('scans') / 'phantoms')
  variation = phantom.Variation(
    translation_sd=15, rotation_sd=0, displacement_sd=1.5, scale=(0.9, 1.1)
  )
  phantom.write_luna16(folder, 8, (96, 96, 72), 3, variation)
  return folder


@pytest.fixture
def tool(import_main):
  return import_main('tools.compare_frames')


def test_it_prints_a_table_of_both_frames(tool, scans, capsys):
  with flagsaver.flagsaver(scans=[scans], check=True):
    tool.main([])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f'{scans}: 8 patients, synthetic, seed 3'
  assert lines[1] == (
    'variation: translation sd 15 mm, rotation sd 0 degrees, scale 0.9-1.1,'
    ' displacement sd 1.5 mm, field of view 320-400 mm, length 310-350 mm,'
    ' noise 8-25 HU'
  )
  assert lines[2].split()[:3] == ['frame', 'words', 'cubes']
  rows = {line.split()[0]: line.split()[1:] for line in lines[3:5]}
  assert list(rows) == ['voxel', 'lung']
  # Every patient is a reference, and all others show its word where they can.
  assert [int(row[0]) for row in rows.values()] == [8, 8]
  assert all(8 < int(row[1]) <= 8 * 7 for row in rows.values())
  ratio = float(re.search(r'lung / voxel: ([\d.]+) \(', lines[5])[1])
  mean = {frame: float(row[2]) for frame, row in rows.items()}
  assert ratio == pytest.approx(mean['lung'] / mean['voxel'], abs=0.02)
  assert ratio < 0.5


def test_a_frame_that_is_not_better_is_told(tool):
  def scores(error_mm, within, between):
    return quality.Scores(9, within, between, 0.1, 0.1, error_mm)

  voxel = scores(20.0, 0.5, 0.2)
  for lung, good in (
    (scores(10.0, 0.6, 0.25), [True, True]),
    (scores(10.1, 0.6, 0.2), [False, True]),
    (scores(5.0, 0.7, 0.4), [True, False]),
  ):
    assert [fine for _, fine in tool.compare(voxel, lung)] == good


def test_check_fails_where_the_frame_is_not_better(
  tool, scans, monkeypatch, capsys
):
  monkeypatch.setattr(
    tool, 'compare', lambda voxel, lung: [('error: 0.9', False)]
  )
  with (
    flagsaver.flagsaver(scans=[scans], check=True, words=2),
    pytest.raises(errors.UserError, match=r'not better: .*: error: 0\.9'),
  ):
    tool.main([])
  assert 'error: 0.9' in capsys.readouterr().out


def test_folders_of_unknown_anatomy_are_refused(tool, tmp_path):
  with (
    flagsaver.flagsaver(scans=[os.fspath(tmp_path)]),
    pytest.raises(errors.UserError, match='the truth is known only of folders'),
  ):
    tool.main([])
