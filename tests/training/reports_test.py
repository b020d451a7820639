"""history.csv and pictures."""

import numpy as np

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


def test_a_worker_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  silent = reports.Reports(None, complete_epochs=0)
  silent.write_epoch(1, {'loss': 1.0})
  silent.write_text('config', 'a = 1')
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
