"""The comparison of descriptors, by hand and on a folder of phantoms."""

import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pytest

from transvw_tf2 import errors
from transvw_tf2.models import unet3d
from transvw_tf2.scans import bend
from transvw_tf2.scans import geometry
from transvw_tf2.scans import phantom
from transvw_tf2.serving import export

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@pytest.fixture(name='tool')
def _tool(import_main):
  return import_main('tools.compare_descriptors')


def _truth(shift, size=(80, 70, 50), spacing=2.0):
  """A patient that lies `shift` mm further along x than the template."""
  no_bend = bend.Bend(
    corner=np.zeros(3),
    spacing=np.full(3, 100.0),
    coefficients=np.zeros((4, 4, 4, 3)),
    matrix=np.eye(3),
    offset=np.array([-shift, 0.0, 0.0]),
  )
  return bend.Truth(geometry.Geometry(size, (spacing,) * 3), no_bend)


def test_middles_of_cubes_lie_inside(tool):
  centres = tool.draw_centres((66, 64, 33), 500, np.random.default_rng(0))
  np.testing.assert_array_equal(centres.min(axis=0), (31.5, 31.5, 15.5))
  np.testing.assert_array_equal(centres.max(axis=0), (33.5, 31.5, 16.5))


def test_the_error_is_the_shift_of_the_anatomy(tool):
  reference = _truth(5.0)
  patients = [_truth(5.0), _truth(12.0), _truth(-3.0)]
  centres = np.array([[31.5, 31.5, 15.5], [40.0, 32.0, 20.0]])
  table = tool.measure_errors(reference, patients, centres)
  np.testing.assert_allclose(table, [[0, 0], [7, 7], [8, 8]], atol=1e-9)
  # Twice the spacing: the same voxel lies twice as far from the origin.
  (row,) = tool.measure_errors(_truth(0.0), [_truth(0.0, spacing=4.0)], centres)
  np.testing.assert_allclose(row, 2 * np.linalg.norm(centres, axis=1))


def test_patients_too_small_for_a_cube_are_passed_over(tool):
  centres = np.array([[31.5, 31.5, 15.5], [40.5, 31.5, 15.5]])
  small = _truth(1.0, size=(64, 64, 32))
  table = tool.measure_errors(
    _truth(0.0), [small, _truth(2.0), _truth(4.0)], centres
  )
  np.testing.assert_allclose(table, [[1, np.nan], [2, 2], [4, 4]])
  # The small one is nearest: at the second place the next one is taken.
  order = np.array([0, 1, 2])
  assert tool.nearest_error(order, table, 1) == pytest.approx((1 + 2) / 2)
  assert tool.nearest_error(order, table, 2) == pytest.approx(
    (1 + 2 + 2 + 4) / 4
  )
  assert tool.nearest_error(order[::-1], table, 1) == pytest.approx(4)


def test_good_descriptors_are_told_from_bad_ones(tool):
  shifts = {'a': 0.0, 'b': 1.0, 'c': 10.0, 'd': 30.0}
  truths = {key: _truth(shift) for key, shift in shifts.items()}
  tables = tool.make_tables(truths, ['a'], shifts, places=3, seed=0)
  assert tables['a'][1] == ['b', 'c', 'd']
  good = {key: np.array([shift]) for key, shift in shifts.items()}
  bad = {key: np.array([1 / (1 + shift)]) for key, shift in shifts.items()}
  bad['a'] = np.array([0.0])
  found = tool.compare(tables, {'good': good, 'bad': bad}, count=1)
  assert {name: values.tolist() for name, values in found.items()} == {
    'random': pytest.approx([41 / 3]),
    'good': pytest.approx([1.0]),
    'bad': pytest.approx([30.0]),
    'best possible': pytest.approx([1.0]),
  }


@pytest.fixture(name='folders', scope='module')
def _folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp('phantoms')
  scans, index, model = (
    str(folder / name) for name in ('scans', 'index', 'model')
  )
  # 0 to 4 train, 5 and 6 validation.
  phantom.write_luna16(scans, scans=7, size=(64, 64, 40), seed=3)
  subprocess.run(
    [
      *(sys.executable, '-m', 'beam_jobs.index_scans'),
      *(f'--scans={scans}', f'--output={index}'),
    ],
    cwd=_ROOT,
    check=True,
  )
  network = unet3d.UNet3D(base_filters=1, depth=2)
  export.export_thumbnail_encoder(network, model, {})
  return scans, index, model


@pytest.mark.long
def test_a_table_of_phantoms(tool, folders, capsys):
  scans, index, model = folders
  settings = {'scans': scans, 'data': index, 'patients': 2, 'places': 4}
  with flagsaver.flagsaver(model=[f'tiny={model}'], **settings):
    tool.main([])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'patients: seed 3, variation the default'
  names = [line.partition(':')[0] for line in lines[2:]]
  rows = ['random', 'pca', 'autoencoder tiny', 'best possible']
  assert names == [
    f'{split} patients, {row}'
    for split in ('train', 'validation')
    for row in rows
  ]
  values = [float(line.partition(': ')[2].split()[0]) for line in lines[2:6]]
  assert min(values) == values[-1] > 0


def test_wrong_models_are_one_line(tool, tmp_path):
  for model, text in (
    ('nothing', "--model is 'nothing', wanted NAME=FOLDER"),
    (f'empty={tmp_path}', 'is not a SavedModel'),
  ):
    with pytest.raises(errors.UserError, match=text):
      tool.parse_models([model])
