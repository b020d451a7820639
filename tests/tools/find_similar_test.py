"""Similar places against brute force, on phantoms and a tiny encoder."""

import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest

from beam_jobs import embedding_files
from tests.tools import similar_places
from transvw_tf2 import errors
from transvw_tf2.models import unet3d
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.serving import export

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_CUBE = (16, 16, 8)


@pytest.fixture(name='tool')
def _tool(import_main):
  return import_main('tools.find_similar')


@pytest.fixture(name='folders', scope='module')
def _folders(tmp_path_factory):
  """Four patients: 3 x 3 x 3 cubes each."""
  folder = tmp_path_factory.mktemp('similar')
  scans, model, output = (
    str(folder / name) for name in ('scans', 'model', 'embeddings')
  )
  phantom.write_luna16(scans, scans=4, size=(48, 48, 24), seed=3)
  export.export_encoder(
    unet3d.UNet3D(base_filters=2, depth=2), model, {}, cube_shape=_CUBE
  )
  subprocess.run(
    [
      *(sys.executable, '-m', 'beam_jobs.embed_scans'),
      *(f'--scans={scans}', f'--model={model}', f'--output={output}'),
    ],
    cwd=_ROOT,
    check=True,
  )
  return scans, output


def test_the_nearest_cube_is_the_one_around_the_place(tool, folders):
  scan = similar_places.read_all(folders[1])[0]
  for corner, voxel in (
    ((0, 0, 0), (0, 0, 0)),
    ((16, 0, 8), (20, 3, 12)),
    ((32, 32, 16), (47.4, 47, 23)),
  ):
    row = tool.find_cube(scan, scan.geometry.voxel_to_world(voxel))
    assert scan.places[row].tolist() == list(corner)
  for voxel in ((48, 0, 0), (0, -1, 0), (1e9, 0, 0)):
    with pytest.raises(errors.UserError, match=r'wanted 0,0,0 to 47,47,23'):
      tool.find_cube(scan, scan.geometry.voxel_to_world(voxel))


@pytest.mark.parametrize(('count', 'per_patient'), [(5, 1), (4, 2), (2, 9)])
def test_similar_places_are_those_of_a_loop(tool, folders, count, per_patient):
  scans = similar_places.read_all(folders[1])
  query, row = scans[1], 13
  table = tool.find_similar(
    folders[1], query, row, count, per_patient, whiten=False
  )
  found = []
  for scan in scans[:1] + scans[2:]:
    every = [
      (
        similar_places.cosine(query.embeddings[row], one),
        scan.scan_id,
        tuple(place),
      )
      for one, place in zip(scan.embeddings, scan.places, strict=True)
    ]
    found += sorted(every, reverse=True)[:per_patient]
  found = sorted(found, reverse=True)[:count]
  assert len(table) == 1 + min(count, 3 * per_patient)
  first, *rest = table.to_dict('records')
  assert (first['rank'], first['scan_id']) == (0, query.scan_id)
  assert [first[axis] for axis in 'xyz'] == query.places[row].tolist()
  for rank, (line, want) in enumerate(zip(rest, found, strict=True), start=1):
    assert line['rank'] == rank
    assert line['cosine'] == pytest.approx(want[0], abs=1e-5)
    assert line['scan_id'] == want[1]
    assert tuple(line[axis] for axis in 'xyz') == want[2]


def test_whitened_places_are_those_of_a_loop(tool, folders):
  scans = similar_places.read_all(folders[1])
  whitened = similar_places.whiten(
    np.concatenate([one.embeddings for one in scans])
  )
  whitened = np.split(whitened, len(scans))
  table = tool.find_similar(folders[1], scans[1], 13, 5)
  found = sorted(
    (
      max(
        (
          similar_places.cosine(whitened[1][13], row),
          scans[one].scan_id,
          tuple(place),
        )
        for row, place in zip(whitened[one], scans[one].places, strict=True)
      )
      for one in (0, 2, 3)
    ),
    reverse=True,
  )
  for line, want in zip(table.to_dict('records')[1:], found, strict=True):
    assert line['cosine'] == pytest.approx(want[0], abs=1e-4)
    assert (line['scan_id'], line['x'], line['y'], line['z']) == (
      *(want[1], *want[2]),
    )


def test_a_table_and_a_picture(tool, folders, tmp_path, capsys):
  scans, embeddings = folders
  scan = similar_places.read_all(embeddings)[2]
  world = scan.geometry.voxel_to_world((24, 24, 12))
  output = str(tmp_path / 'similar.png')
  with flagsaver.flagsaver(
    embeddings=embeddings,
    scans=scans,
    scan=scan.scan_id,
    world=[str(one) for one in world],
    count=2,
    output=output,
  ):
    tool.main([])
  lines = capsys.readouterr().out.splitlines()
  # From the middle of the cube at 16, 16, 8: half a voxel along each axis.
  off = np.linalg.norm(scan.geometry.spacing) / 2
  assert f' {off:.1f} mm away' in lines[0]
  assert len(lines) == 1 + 1 + 3
  assert lines[1].split() == [
    *('rank', 'scan_id', 'x', 'y', 'z'),
    *('world_x', 'world_y', 'world_z', 'cosine'),
  ]
  assert lines[2].split()[:5] == ['0', scan.scan_id, '16', '16', '8']
  picture = np.asarray(Image.open(output).convert('L'))
  assert picture.shape == (630, 700)
  assert len(np.unique(picture)) > 50
  assert os.listdir(tmp_path) == ['similar.png']


def test_the_planes_are_drawn_in_true_proportions(tool, folders):
  scans, embeddings = folders
  scan = similar_places.read_all(embeddings)[0]
  table = tool.find_similar(embeddings, scan, 0, 1)
  figure = tool.draw_cubes(table, scans, _CUBE)
  path = luna16.find_scans(scans)[0].path
  hu = reader.read_scan(path, cube_shape=_CUBE).hu[:16, :16, :8]
  axial, coronal, sagittal = (ax.images[0] for ax in figure.axes[:3])
  np.testing.assert_array_equal(axial.get_array(), hu[:, :, 4].T)
  np.testing.assert_array_equal(coronal.get_array(), hu[:, 8, ::-1].T)
  np.testing.assert_array_equal(sagittal.get_array(), hu[8, :, ::-1].T)
  x, y, z = np.multiply(_CUBE, scan.geometry.spacing)
  for image, sides in ((axial, (x, y)), (coronal, (x, z)), (sagittal, (y, z))):
    left, right, bottom, top = image.get_extent()
    np.testing.assert_allclose((right - left, bottom - top), sides)


def test_wrong_arguments_are_one_line(tool, folders, tmp_path):
  scans, embeddings = folders
  scan_id = embedding_files.list_scans(embeddings)[0]
  place = {'scan': scan_id, 'voxel': ['1', '2', '3']}
  for named, text in (
    ({'scan': scan_id}, '0 of --voxel and --world are given'),
    ({**place, 'world': ['1', '2', '3']}, '2 of --voxel and --world'),
    ({**place, 'voxel': ['1', '2']}, r"--voxel is '1,2', wanted x,y,z"),
    ({**place, 'voxel': ['1', '2', 'nan']}, 'wanted x,y,z'),
    ({**place, 'voxel': ['1', '2', '99']}, 'is voxel 1,2,99 of'),
    ({**place, 'scan': 'gone'}, "no embeddings of scan 'gone'"),
    ({**place, 'output': 'a.png'}, '--scans is missing'),
    ({**place, 'scans': scans}, '--scans is for the picture'),
    ({**place, 'output': 'a.csv', 'scans': scans}, r'ends in \.png'),
    (
      {**place, 'output': 'no/a.png', 'scans': scans, 'embeddings': 'no'},
      'in a folder that exists',
    ),
    ({**place, 'embeddings': str(tmp_path)}, 'cannot be read'),
  ):
    with (
      flagsaver.flagsaver(**{'embeddings': embeddings} | named),
      pytest.raises(errors.UserError, match=text),
    ):
      tool.main([])
  assert os.listdir(tmp_path) == []
