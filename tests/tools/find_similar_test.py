"""Similar places against brute force, on phantoms and a tiny encoder."""

import itertools
import os
import subprocess
import sys

from absl.testing import flagsaver
import numpy as np
import pandas as pd
from PIL import Image
import pytest
from sklearn import covariance

from beam_jobs import embedding_files
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
_METHODS = [
  *('embedding', 'pixels', 'embedding, whitened', 'pixels, whitened'),
  *('same voxels', 'random', 'best possible'),
]


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


def _read_all(folder):
  return [
    embedding_files.read_scan(folder, one)
    for one in embedding_files.list_scans(folder)
  ]


def _cosine(one, other):
  one, other = one.astype(float), other.astype(float)
  return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_the_nearest_cube_is_the_one_around_the_place(tool, folders):
  scan = _read_all(folders[1])[0]
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
  scans = _read_all(folders[1])
  query, row = scans[1], 13
  table = tool.find_similar(
    folders[1], query, row, count, per_patient, whiten=False
  )
  found = []
  for scan in scans[:1] + scans[2:]:
    every = [
      (_cosine(query.embeddings[row], one), scan.scan_id, tuple(place))
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


def _whiten(rows):
  """Whitens by scikit-learn's precision: W W' is what it inverts."""
  estimate = covariance.OAS().fit(np.asarray(rows, np.float64))
  return (rows - estimate.location_) @ np.linalg.cholesky(estimate.precision_)


def test_whitened_places_are_those_of_a_loop(tool, folders):
  scans = _read_all(folders[1])
  whitened = _whiten(np.concatenate([one.embeddings for one in scans]))
  whitened = np.split(whitened, len(scans))
  table = tool.find_similar(folders[1], scans[1], 13, 5)
  found = sorted(
    (
      max(
        (_cosine(whitened[1][13], row), scans[one].scan_id, tuple(place))
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
  scan = _read_all(embeddings)[2]
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
  scan = _read_all(embeddings)[0]
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


def _expected_pairs(scans, embeddings, radius):
  """The table of `measure`, a cube at a time."""
  truths = phantom.load_truth(scans)
  paths = {one.scan_id: one.path for one in luna16.find_scans(scans)}
  cubes = {}
  for scan in _read_all(embeddings):
    hu = reader.read_scan(paths[scan.scan_id], cube_shape=_CUBE).hu
    cubes[scan.scan_id] = [
      {
        'corner': np.array([x, y, z]),
        'embedding': embedding,
        'place': truths[scan.scan_id].template_coordinates(
          (x + 7.5, y + 7.5, z + 3.5)
        ),
        'pixels': hu[x : x + 16, y : y + 16, z : z + 8]
        .clip(-1000, 1000)
        .reshape(4, 4, 4, 4, 2, 4)
        .mean(axis=(1, 3, 5))
        .ravel(),
      }
      for (x, y, z), embedding in zip(scan.places, scan.embeddings, strict=True)
    ]
  every = list(itertools.chain.from_iterable(cubes.values()))
  for cube in every:
    # Pixels are compared by what they differ in from their mean.
    cube['pixels'] = cube['pixels'] - cube['pixels'].mean()
  for method in ('embedding', 'pixels'):
    whitened = _whiten(np.array([cube[method] for cube in every]))
    for cube, row in zip(every, whitened, strict=True):
      cube[f'{method}, whitened'] = row
  for query, patient in itertools.permutations(sorted(cubes), 2):
    right = {method: [] for method in _METHODS}
    for one in cubes[query]:
      others = cubes[patient]
      near = [
        np.linalg.norm(one['place'] - other['place']) <= radius
        for other in others
      ]
      for method in _METHODS[:4]:
        scores = [_cosine(one[method], other[method]) for other in others]
        right[method].append(near[np.argmax(scores)])
      offsets = [
        np.linalg.norm(one['corner'] - other['corner']) for other in others
      ]
      right['same voxels'].append(near[np.argmin(offsets)])
      right['random'].append(np.mean(near))
      right['best possible'].append(any(near))
    yield {
      'query': query,
      'patient': patient,
      'places': 27,
      **{method: np.mean(values) for method, values in right.items()},
    }


def test_the_measurement_is_that_of_a_loop(tool, folders, tmp_path, capsys):
  scans, embeddings = folders
  output = str(tmp_path / 'pairs.csv')
  # So much that places are found, so little that not all are.
  radius = 60.0
  with flagsaver.flagsaver(
    embeddings=embeddings,
    scans=scans,
    measure=True,
    radius=radius,
    output=output,
  ):
    tool.main([])
  want = pd.DataFrame(_expected_pairs(scans, embeddings, radius))
  found = pd.read_csv(output)
  pd.testing.assert_frame_equal(found, want, check_dtype=False, rtol=1e-5)
  assert len(found) == 4 * 3
  assert 0 < found['embedding'].mean() < 1
  assert (found['pixels'] > found['random']).any()
  assert (found['best possible'] >= found['embedding']).all()

  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 + 12 + 1 + 1 + 7
  assert lines[13] == (
    'found within 60 mm, 324 places in 12 pairs of patients:'
  )
  for line, method in zip(lines[15:], _METHODS, strict=True):
    *name, share, error = line.split()
    assert ' '.join(name) == method
    assert share == f'{want[method].mean():.1%}'
    by_query = want.groupby('query')[method].mean()
    assert error == f'{by_query.std(ddof=1) / 2:.1%}'


def test_patients_count_by_their_places(tool):
  pairs = pd.DataFrame(
    [
      {'query': 'a', 'patient': 'b', 'places': 30, 'embedding': 0.5},
      {'query': 'b', 'patient': 'a', 'places': 10, 'embedding': 0.1},
    ]
  )
  found = tool.summarise(pairs).loc['embedding']
  assert found['found'] == pytest.approx(16 / 40)
  # The sd of 0.5 and 0.1 is 0.2828.
  assert found['standard_error'] == pytest.approx(0.2)


def test_wrong_arguments_are_one_line(tool, folders, tmp_path):
  scans, embeddings = folders
  scan_id = embedding_files.list_scans(embeddings)[0]
  place = {'scan': scan_id, 'voxel': ['1', '2', '3']}
  for named, text in (
    ({'voxel': ['1', '2', '3']}, '--scan is missing'),
    ({'scan': scan_id}, '0 of --voxel and --world are given'),
    ({**place, 'world': ['1', '2', '3']}, '2 of --voxel and --world'),
    ({**place, 'voxel': ['1', '2']}, r"--voxel is '1,2', wanted x,y,z"),
    ({**place, 'voxel': ['1', '2', 'nan']}, 'wanted x,y,z'),
    ({**place, 'voxel': ['1', '2', '99']}, 'is voxel 1,2,99 of'),
    ({**place, 'scan': 'gone'}, "no embeddings of scan 'gone'"),
    ({**place, 'output': 'a.png'}, '--scans is missing'),
    ({**place, 'output': 'a.csv', 'scans': scans}, r'ends in \.png'),
    ({**place, 'embeddings': str(tmp_path)}, 'cannot be read'),
    ({'measure': True}, '--scans is missing: it is needed for --measure'),
    (
      {'measure': True, 'scans': scans, 'output': 'a.png'},
      r'ends in \.csv',
    ),
    (
      {'measure': True, 'scans': scans, 'output': str(tmp_path / 'x/a.csv')},
      'cannot be written',
    ),
  ):
    with (
      flagsaver.flagsaver(**{'embeddings': embeddings} | named),
      pytest.raises(errors.UserError, match=text),
    ):
      tool.main([])
  assert os.listdir(tmp_path) == []


def test_folders_that_do_not_fit_are_one_line(tool, folders, tmp_path):
  scans, embeddings = folders
  first = luna16.find_scans(scans)[0]
  unknown = tmp_path / 'unknown' / 'train'
  unknown.mkdir(parents=True)
  scan = reader.read_scan(first.path, cube_shape=_CUBE)
  path = str(unknown / f'{first.scan_id}.mhd')
  reader.write_scan(path, scan.hu, scan.geometry)
  with pytest.raises(errors.UserError, match='truth is known only of folders'):
    tool.measure(embeddings, str(unknown.parent), 15.0)
  with pytest.raises(errors.UserError, match='lacks 3 scans of the embeddings'):
    embedding_files.find_paths(
      str(unknown.parent), embedding_files.list_scans(embeddings)
    )
