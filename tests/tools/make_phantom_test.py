"""The command that makes a folder of synthetic scans."""

import json
import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.fixture
def make(import_main, tmp_path):
  """Runs the main with flags, as parsed, into tmp_path/out."""
  module = import_main('tools.make_phantom')

  def run(**flags):
    flags = {'out': os.fspath(tmp_path / 'out')} | flags
    with flagsaver.flagsaver(**flags):
      module.main([])
    return flags['out']

  return run


def test_it_writes_the_patients_of_the_library(make, tmp_path):
  out = make(scans=2, size=['64', '64', '48'], seed=11)
  assert os.listdir(tmp_path) == ['out']
  scans = {one.scan_id: one.path for one in luna16.find_scans(out)}
  for index in range(2):
    wanted = phantom.make_patient(11, index, (64, 64, 48))
    found = reader.read_scan(scans.pop(wanted.scan_id))
    np.testing.assert_array_equal(found.hu, wanted.hu)
  assert not scans
  assert set(phantom.load_truth(out)) == {
    one.scan_id for one in luna16.find_scans(out)
  }
  # Others can read the folder, which a temporary folder forbids.
  assert os.stat(out).st_mode & 0o777 == 0o755


def test_flags_change_the_variation(make):
  out = make(
    scans=1,
    size=['64', '64', '0'],
    slice_thickness=['4.0', '5'],
    displacement_sd=0.0,
    scale=['1.1', '1.1'],
    nodules=['2', '2'],
    diameter=['9', '11.5'],
  )
  diameters = [one.diameter for one in luna16.read_annotations(out)]
  assert len(diameters) == 2
  # Each of the three radii varies by up to 15 %.
  assert all(9.0 * 0.85 <= one <= 11.5 * 1.15 for one in diameters)
  with open(os.path.join(out, 'phantom.json'), encoding='utf-8') as file:
    settings = json.load(file)
  assert settings['variation']['slice_thickness'] == [4.0, 5.0]
  assert settings['variation']['rotation_sd'] == (
    phantom.Variation().rotation_sd
  )
  (truth,) = phantom.load_truth(out).values()
  assert 4.0 <= truth.geometry.spacing[2] <= 5.0
  np.testing.assert_allclose(np.linalg.norm(truth.bend.matrix, axis=1), 1 / 1.1)
  assert not truth.bend.coefficients.any()


def test_it_bends_a_real_scan(make, tmp_path):
  hu = np.random.default_rng(0).integers(-1000, 500, (64, 70, 40))
  geometry = geometry_lib.Geometry(hu.shape, (3.0, 3.0, 4.0))
  source = os.fspath(tmp_path / 'real.nrrd')
  reader.write_scan(source, hu.astype(np.int16), geometry)
  out = make(
    scans=2, size=['64', '64', '32'], noise=['0', '0'], **{'from': source}
  )
  truths = phantom.load_truth(out)
  for scan in luna16.find_scans(out):
    bent = reader.read_scan(scan.path)
    middle = np.array([[32.0, 32.0, 16.0]])
    place = truths[scan.scan_id].template_coordinates(middle)
    x, y, z = np.floor(geometry.world_to_voxel(place)[0]).astype(int)
    corners = hu[x : x + 2, y : y + 2, z : z + 2]
    assert corners.min() <= bent.hu[32, 32, 16] <= corners.max()
    spacing = bent.geometry.spacing[0]
    assert 0.97 * 210.0 <= spacing * 64 <= 1.03 * 210.0


@pytest.mark.parametrize(
  ('flags', 'text'),
  [
    ({'size': ['64', '64']}, '--size must be X,Y,Z in voxels, .* got 64,64'),
    ({'size': ['64', 'x', '4']}, 'got 64,x,4'),
    ({'size': ['64', '64', '0']}, 'size 64,64,0 does not make a scan'),
    ({'scale': ['1']}, '--scale must be LOWEST,HIGHEST, got 1'),
    ({'nodules': ['1', '2.5']}, '--nodules must be LOWEST,HIGHEST, got 1,2.5'),
    ({'scale': ['2', '1']}, r'scale must be \(lowest, highest\)'),
    ({'attached': 1.5}, 'attached must be a share from 0 to 1, got 1.5'),
    (
      {'nodules': ['0', '0'], 'attached': 0.5, 'detected_candidates': True},
      '--attached, --detected_candidates would do nothing without nodules',
    ),
    ({'displacement_sd': 9.0}, 'displacement_sd is 9.0 mm; at most'),
    ({'out': '/proc/nowhere/out'}, '--out /proc/nowhere/out cannot be made'),
  ],
)
def test_wrong_flags_are_named_and_nothing_is_left(make, tmp_path, flags, text):
  with pytest.raises(errors.UserError, match=text):
    make(scans=1, **flags)
  assert not os.listdir(tmp_path)


def test_what_fails_half_way_leaves_nothing(make, tmp_path, monkeypatch):
  write = reader.write_scan
  written = []

  def fail_at_last(path, hu, geometry):
    if len(written) == 3:
      raise OSError('disk full')
    written.append(path)
    write(path, hu, geometry)

  monkeypatch.setattr(reader, 'write_scan', fail_at_last)
  with pytest.raises(OSError, match='disk full'):
    make(scans=2, size=['64', '64', '32'])
  assert len(written) == 3
  assert not os.listdir(tmp_path)


def _run(*flags):
  return subprocess.run(
    [sys.executable, 'tools/make_phantom.py', *flags],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
  out = os.fspath(tmp_path)
  finished = _run('--out', out)
  assert finished.returncode == 1
  assert finished.stderr == f'error: --out {out} exists; give a new folder\n'
  finished = _run('--out', f'{out}/new', '--from', f'{out}/none.nrrd')
  assert finished.returncode == 1
  assert finished.stderr.startswith('error: ')
  assert finished.stderr.count('\n') == 1
  assert 'none.nrrd' in finished.stderr
  assert not os.listdir(out)
