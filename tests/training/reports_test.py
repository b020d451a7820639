"""history.csv, pictures and what TensorBoard reads."""

import json
import resource
import types

import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins import base_plugin
from tensorboard.plugins.projector import projector_plugin
import tensorflow as tf
from werkzeug import test as werkzeug_test

from transvw_tf2 import errors
from transvw_tf2.training import reports


def test_history_of_a_resumed_run_has_each_epoch_once(tmp_path):
  first = reports.Reports(str(tmp_path), complete_epochs=0)
  for epoch in (1, 2, 3):
    first.write_epoch(epoch, {'train/loss': 1 / epoch})
  # Epoch 3 was written, but the checkpoint after it was not.
  resumed = reports.Reports(str(tmp_path), complete_epochs=2)
  resumed.write_epoch(3, {'train/loss': 0.25})
  assert reports.read_history(str(tmp_path)) == [
    {'epoch': 1, 'train/loss': 1.0},
    {'epoch': 2, 'train/loss': 0.5},
    {'epoch': 3, 'train/loss': 0.25},
  ]


def test_curves_of_a_resumed_run_have_each_epoch_once(tmp_path):
  for complete, upto, loss in ((0, 5, 1.0), (3, 6, 2.0), (2, 4, 3.0)):
    part = reports.Reports(str(tmp_path), complete)
    for epoch in range(complete + 1, upto + 1):
      part.write_epoch(epoch, {'train/loss': loss})
  curve = plugin_event_accumulator.EventAccumulator(
    str(tmp_path / 'tensorboard')
  )
  curve.Reload()
  # Epochs 3 and 4 are of the third part, 5 and 6 are not reached any more.
  assert [
    (event.step, float(tf.make_ndarray(event.tensor_proto)))
    for event in curve.Tensors('train/loss')
  ] == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0)]


def test_history_of_a_resumed_run_with_other_columns(tmp_path):
  old = reports.Reports(str(tmp_path), complete_epochs=0)
  old.write_epoch(1, {'a': 1.0, 'b': 2.0})
  new = reports.Reports(str(tmp_path), complete_epochs=1)
  new.write_epoch(2, {'b': 3.0, 'c': 4.0})
  assert reports.read_history(str(tmp_path)) == [
    {'epoch': 1, 'a': 1.0, 'b': 2.0},
    {'epoch': 2, 'b': 3.0, 'c': 4.0},
  ]
  assert new.rows == reports.read_history(str(tmp_path))


@pytest.mark.parametrize('text', ['a,b\n1,2\n', 'epoch,a\n1,x\n', 'epoch\n1,2'])
def test_another_table_is_one_line(tmp_path, text):
  (tmp_path / 'history.csv').write_text(text)
  with pytest.raises(errors.UserError, match=r'history\.csv is not a table'):
    reports.Reports(str(tmp_path), complete_epochs=1)


def test_a_worker_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  silent = reports.Reports(None, complete_epochs=0)
  silent.write_epoch(1, {'loss': 1.0})
  silent.write_text('config', 'a = 1')
  silent.write_figure(1, 'confusion', reports.draw_confusion(np.eye(2), 'ab'))
  silent.write_projector(np.zeros((2, 3)), ['a', 'b'])
  assert silent.rows == [{'epoch': 1, 'loss': 1.0}]
  assert not list(tmp_path.iterdir())


def test_slices_show_x_to_the_right_and_y_down():
  cubes = np.zeros((2, 6, 4, 3, 1), np.float32)
  cubes[1, 5, 2, 1, 0] = 0.75
  figure = reports.draw_slices({'original': cubes, 'restored': None})
  assert len(figure.axes) == 2  # one row, a column per cube
  picture = figure.axes[1].images[0].get_array()
  assert picture.shape == (4, 6)  # y down, x right
  assert picture[2, 5] == 0.75
  assert np.count_nonzero(picture) == 1


def test_confusion_shows_shares_of_the_true_word():
  matrix = np.array([[3.0, 1, 0], [0, 0, 0], [2, 0, 2]])
  figure = reports.draw_confusion(matrix, ['a', 'b', 'c'])
  ax = figure.axes[0]
  # Row: true word. No example of b, so nothing is known of it.
  np.testing.assert_array_equal(
    np.ma.filled(ax.images[0].get_array(), -1),
    [[0.75, 0.25, 0], [-1, -1, -1], [0.5, 0, 0.5]],
  )
  assert ax.get_title() == 'accuracy 62.5% of 8 examples'
  assert [one.get_text() for one in ax.get_yticklabels()] == ['a', 'b', 'c']
  assert {one.get_text() for one in ax.texts} == {'75%', '25%', '50%'}


@pytest.mark.parametrize('count', [4, 44, 200, 1000])
def test_confusion_is_readable_at_any_size(count):
  names = [f'{word:04d}' for word in range(count)]
  figure = reports.draw_confusion(np.eye(count), names)
  ax = figure.axes[0]
  ticks = ax.get_xticks()
  labels = [one.get_text() for one in ax.get_xticklabels()]
  assert 4 <= len(ticks) <= 50
  assert labels == [names[int(tick)] for tick in ticks]
  width, height = figure.get_size_inches()
  assert 4 < width < 12
  assert 4 < height < 12


def test_confusion_without_examples():
  figure = reports.draw_confusion(np.zeros((2, 2)), ['a', 'b'])
  assert 'unknown' in figure.axes[0].get_title()


def test_figure_is_in_the_events(tmp_path):
  written = reports.Reports(str(tmp_path), complete_epochs=0)
  figure = reports.draw_confusion(np.eye(3), 'abc')
  written.write_figure(7, 'confusion', figure)
  (path,) = (tmp_path / 'tensorboard').iterdir()
  (event,) = (
    event
    for event in tf.compat.v1.train.summary_iterator(str(path))
    if event.summary.value
  )
  assert event.step == 7
  assert event.summary.value[0].tag == 'confusion'
  width, height, png = tf.make_ndarray(event.summary.value[0].tensor)
  picture = tf.io.decode_png(png)
  assert picture.shape == (int(height), int(width), 3)
  assert tuple(picture.shape[:2]) == tuple(
    round(100 * inches) for inches in figure.get_size_inches()[::-1]
  )


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
  """And not TensorFlow's for a device without memory."""
  written = reports.Reports(str(tmp_path), complete_epochs=0)
  room = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, room[1]))
  try:
    with pytest.raises(OSError, match='tfevents'):
      written.write_epoch(1, {'loss': 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, room)
  assert not written.rows


class _Projector:
  """Asks TensorBoard's own plugin for what it would send to the browser."""

  def __init__(self, folder):
    runs = [types.SimpleNamespace(run_name='.')]
    plugin = projector_plugin.ProjectorPlugin(
      base_plugin.TBContext(
        logdir=str(folder),
        data_provider=types.SimpleNamespace(list_runs=lambda *_, **__: runs),
      )
    )
    self._apps = plugin.get_plugin_apps()

  def get(self, route, **query):
    client = werkzeug_test.Client(self._apps[route])
    response = client.get(query_string={'run': '.', **query})
    assert response.status_code == 200, response.text
    return response


def test_projector_is_what_tensorboard_reads(tmp_path):
  rng = np.random.default_rng(1)
  embeddings = rng.normal(size=(5, 7)).astype(np.float32)
  cubes = rng.random((5, 6, 4, 3, 1))
  written = reports.Reports(str(tmp_path), complete_epochs=0)
  # The second replaces the first.
  written.write_projector(embeddings[:2], ['a', 'b'])
  words = ['a', 'b\tc', 'd', 'e', 'ä']
  written.write_projector(embeddings, words, cubes)

  ask = _Projector(tmp_path / 'tensorboard')
  (info,) = json.loads(ask.get('/info').text)['embeddings']
  assert info['tensorShape'] == [5, 7]
  name = info['tensorName']
  tensor = np.frombuffer(ask.get('/tensor', name=name).data, np.float32)
  np.testing.assert_allclose(tensor.reshape(5, 7), embeddings, rtol=1e-6)
  metadata = ask.get('/metadata', name=name).text
  assert metadata.splitlines() == ['a', 'b c', 'd', 'e', 'ä']

  sprite = ask.get('/sprite_image', name=name)
  assert sprite.mimetype == 'image/png'
  assert info['sprite']['singleImageDim'] == [6, 4]  # width, height
  (path,) = (tmp_path / 'tensorboard').glob('plugins/*/*.png')
  picture = np.asarray(Image.open(path))
  assert picture.shape == (3 * 4, 3 * 6)  # 5 examples in 3 x 3
  for number, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0)]):
    tile = picture[4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
    want = 255 * cubes[number, :, :, 1, 0].T
    np.testing.assert_allclose(tile, want, atol=0.5)
  assert not list((tmp_path / 'tensorboard').glob('plugins/*.tmp'))


def test_projector_without_pictures(tmp_path):
  written = reports.Reports(str(tmp_path), complete_epochs=0)
  written.write_projector(np.zeros((2, 3), np.float32), ['a', 'b'])
  ask = _Projector(tmp_path / 'tensorboard')
  (info,) = json.loads(ask.get('/info').text)['embeddings']
  assert 'sprite' not in info
