"""The measurement of similar places against brute force, on phantoms."""

import itertools
import os
from unittest import mock

from absl.testing import flagsaver
import numpy as np
import pandas as pd
import pytest

from beam_jobs import embedding_files
from tests.tools import similar_places
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed

_CUBE = (16, 16, 8)
_METHODS = [
  *('embedding', 'pixels', 'embedding, whitened', 'pixels, whitened'),
  *('same voxels', 'random', 'best possible'),
]


@pytest.fixture(name='tool')
def _tool(import_main):
  return import_main('tools.measure_similar')


@pytest.fixture(name='folders', scope='module')
def _folders(tmp_path_factory):
  """Four patients, 3 x 3 x 3 cubes each; a projection stands for an encoder."""
  folder = tmp_path_factory.mktemp('measure')
  scans, output = str(folder / 'scans'), str(folder / 'embeddings')
  phantom.write_luna16(scans, scans=4, size=(48, 48, 24), seed=3)
  projection = np.random.default_rng(0).normal(size=(np.prod(_CUBE), 8))
  settings = embedding_files.Settings('projection', _CUBE, _CUBE, 8)
  embedding_files.prepare_folder(output, settings)
  for file in luna16.find_scans(scans):
    scan = reader.read_scan(file.path, cube_shape=_CUBE)
    places = embed.cube_places(scan.hu.shape, _CUBE, _CUBE)
    (cubes,) = embed.cut_batches(scan.hu, places, _CUBE, len(places))
    embeddings = cubes.reshape(len(places), -1) @ projection
    embeddings = np.maximum(embeddings, 0).astype(np.float32)
    embedding_files.write_scan(
      output,
      file,
      scan.geometry,
      embed.ScanEmbedding(places, embeddings, embeddings.mean(axis=0)),
      _CUBE,
    )
  return scans, output


def _expected_pairs(scans, embeddings, radius):
  """The table of `measure`, a cube at a time."""
  truths = phantom.load_truth(scans)
  paths = {one.scan_id: one.path for one in luna16.find_scans(scans)}
  cubes = {}
  for scan in similar_places.read_all(embeddings):
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
    whitened = similar_places.whiten(np.array([cube[method] for cube in every]))
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
        scores = [
          similar_places.cosine(one[method], other[method]) for other in others
        ]
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


def test_wrong_output_is_one_line(tool, folders, tmp_path):
  scans, embeddings = folders
  for output, text in (
    ('a.png', r'ends in \.csv'),
    (str(tmp_path / 'x/a.csv'), 'cannot be written'),
  ):
    with (
      flagsaver.flagsaver(embeddings=embeddings, scans=scans, output=output),
      pytest.raises(errors.UserError, match=text),
    ):
      tool.main([])
  # Before a scan is read.
  with (
    mock.patch.object(tool, 'measure') as measure,
    flagsaver.flagsaver(
      embeddings=embeddings, scans=scans, output=str(tmp_path / 'x/a.csv')
    ),
    pytest.raises(errors.UserError, match='in a folder that exists'),
  ):
    tool.main([])
  assert not measure.called
  assert os.listdir(tmp_path) == []


def test_a_scan_whose_anatomy_is_not_known(tool, folders, monkeypatch):
  scans, embeddings = folders
  truths = phantom.load_truth(scans)
  stranger = min(truths)
  del truths[stranger]
  monkeypatch.setattr(phantom, 'load_truth', lambda _: truths)
  with pytest.raises(errors.UserError, match=f'of 1 scans .* first {stranger}'):
    tool.measure(embeddings, scans, 15.0)


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
