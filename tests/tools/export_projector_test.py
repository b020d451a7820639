"""The projector's files, as TensorBoard's own plugin reads them."""

import json
import math
import os
import types

from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest
from tensorboard.plugins import base_plugin
from tensorboard.plugins.projector import projector_plugin
from werkzeug import test as werkzeug_test

from beam_jobs import embedding_files
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.serving import embed

_CUBE = (64, 64, 32)


@pytest.fixture(name='tool')
def _tool(import_main):
  return import_main('tools.export_projector')


@pytest.fixture(name='folders', scope='module')
def _folders(tmp_path_factory):
  """Three scans with 8 cubes each; embeddings as no encoder makes them."""
  folder = tmp_path_factory.mktemp('projector')
  scans = tiny_scans.write_luna16(
    folder / 'scans', train=2, validation=1, held_out=0
  )
  output = str(folder / 'embeddings')
  embedding_files.prepare_folder(
    output, embedding_files.Settings('of no model', _CUBE, _CUBE, 5)
  )
  rng = np.random.default_rng(0)
  for number, scan_file in enumerate(luna16.find_scans(scans)):
    places = embed.cube_places(tiny_scans.SIZE, _CUBE, _CUBE)
    embeddings = rng.normal(size=(8, 5)).astype(np.float32)
    one = embed.ScanEmbedding(places, embeddings, embeddings.mean(axis=0))
    geometry = tiny_scans.make_geometry(number)
    embedding_files.write_scan(output, scan_file, geometry, one, _CUBE)
  return scans, output


class _Projector:
  """Asks TensorBoard's own plugin for what it would send to the browser.

  There are no runs in the folder, as there are no events.
  """

  def __init__(self, folder):
    plugin = projector_plugin.ProjectorPlugin(
      base_plugin.TBContext(
        logdir=str(folder),
        data_provider=types.SimpleNamespace(list_runs=lambda *_, **__: []),
      )
    )
    self._apps = plugin.get_plugin_apps()

  def get(self, route, **query):
    client = werkzeug_test.Client(self._apps[route])
    response = client.get(query_string={'run': '.', **query})
    assert response.status_code == 200, response.text
    return response


def test_all_cubes_with_their_places_and_slices(
  tool, folders, tmp_path, capsys
):
  scans, embeddings = folders
  output = tmp_path / 'projector'
  with flagsaver.flagsaver(
    embeddings=embeddings, scans=scans, output=str(output)
  ):
    tool.main([])
  assert capsys.readouterr().out == (
    f'24 of 24 cubes: tensorboard --logdir {output}\n'
  )
  ask = _Projector(output)
  (info,) = json.loads(ask.get('/info').text)['embeddings']
  assert info['tensorShape'] == [24, 5]
  name = info['tensorName']
  tensor = np.frombuffer(ask.get('/tensor', name=name).data, np.float32)
  want = [
    embedding_files.read_scan(embeddings, one)
    for one in embedding_files.list_scans(embeddings)
  ]
  np.testing.assert_allclose(
    tensor.reshape(24, 5),
    np.concatenate([one.embeddings for one in want]),
    rtol=1e-6,
  )
  head, *rows = ask.get('/metadata', name=name).text.splitlines()
  assert head.split('\t') == [
    *('scan_id', 'x', 'y', 'z', 'world_x', 'world_y', 'world_z')
  ]
  assert len(rows) == 24
  scan_id, *numbers = rows[-1].split('\t')
  assert scan_id == want[2].scan_id
  assert numbers[:3] == ['16', '16', '16']
  np.testing.assert_allclose(
    list(map(float, numbers[3:])), want[2].middles[7], atol=0.05
  )

  assert ask.get('/sprite_image', name=name).mimetype == 'image/png'
  assert info['sprite']['singleImageDim'] == [32, 32]
  picture = np.asarray(Image.open(output / 'slices.png'))
  assert picture.shape == (5 * 32, 5 * 32)
  # The last of scan 1 is number 15 of 24: row 3, column 0.
  tile = picture[3 * 32 : 4 * 32, :32]
  middle = tiny_scans.make_hu(1)[16:80, 16:80, 16 + 16]
  means = middle.reshape(32, 2, 32, 2).mean(axis=(1, 3)).T
  # A tent filter, of which the mean of two pixels is the middle.
  grey = np.clip((means + 1000) / 2000, 0, 1) * 255
  assert np.corrcoef(tile.ravel(), grey.ravel())[0, 1] > 0.99
  assert np.abs(tile - grey).mean() < 5


def test_some_cubes_are_drawn_at_random(tool, folders, tmp_path):
  scans, embeddings = folders
  contents = []
  for name, seed in (('one', 1), ('two', 1), ('three', 2)):
    found = tool.export(embeddings, str(tmp_path / name), 6, seed, scans)
    assert found == (6, 24)
    rows = (tmp_path / name / 'words.tsv').read_text().splitlines()
    assert len(rows) == 7
    contents.append(rows)
  assert contents[0] == contents[1] != contents[2]


def test_rows_are_chosen_evenly(tool):
  rows = tool.choose_rows([3, 0, 5], 100, seed=0)
  assert [one.tolist() for one in rows] == [[0, 1, 2], [], [0, 1, 2, 3, 4]]
  rows = tool.choose_rows([3000, 0, 7000], 1000, seed=0)
  assert sum(map(len, rows)) == 1000
  # Within four sd of what is expected.
  sd = math.sqrt(1000 * 0.3 * 0.7)
  assert abs(len(rows[0]) - 300) < 4 * sd
  for one, count in zip(rows, (3000, 1, 7000), strict=True):
    assert len(np.unique(one)) == len(one)
    assert ((one >= 0) & (one < count)).all()


def test_without_scans_there_are_no_pictures(tool, folders, tmp_path):
  output = tmp_path / 'projector'
  assert tool.export(folders[1], str(output), 100, 1) == (24, 24)
  (info,) = json.loads(_Projector(output).get('/info').text)['embeddings']
  assert 'sprite' not in info
  assert len(os.listdir(output)) == 3


def test_wrong_input_is_one_line(tool, folders, tmp_path):
  scans, embeddings = folders
  (tmp_path / 'file').write_text('')
  for arguments, text in (
    ((embeddings, str(tmp_path), 9, 1), 'exists; give another folder'),
    ((embeddings, str(tmp_path / 'file/x'), 9, 1), 'cannot be written'),
    ((str(tmp_path), str(tmp_path / 'x'), 9, 1), 'settings.json cannot be'),
    ((embeddings, str(tmp_path / 'x'), 10**6, 1, scans), '65536 at most'),
    ((embeddings, str(tmp_path / 'x'), 9, 1, str(tmp_path)), 'no scan found'),
  ):
    with pytest.raises(errors.UserError, match=text):
      tool.export(*arguments)
  assert os.listdir(tmp_path) == ['file']
