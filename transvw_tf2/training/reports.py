"""What a run shows: scalars, pictures and a table of its epochs."""

from collections.abc import Mapping
import csv
import os

from matplotlib.backends import backend_agg
import matplotlib.figure
import numpy as np
import tensorflow as tf

HISTORY_FILE = 'history.csv'
_TENSORBOARD = 'tensorboard'


class Reports:
  """Writes TensorBoard events and history.csv into a run's folder."""

  def __init__(self, workdir: str | None, complete_epochs: int):
    """Initialises the reports.

    Args:
      workdir: folder of the run; None writes nothing.
      complete_epochs: later rows of history.csv are of a run that was cut off
        and is resumed; they are dropped.
    """
    self._path = workdir and os.path.join(workdir, HISTORY_FILE)
    known = workdir and os.path.exists(self._path)
    self.rows = [
      row
      for row in (read_history(workdir) if known else [])
      if row['epoch'] <= complete_epochs
    ]
    self._writer = (
      tf.summary.create_file_writer(os.path.join(workdir, _TENSORBOARD))
      if workdir
      else tf.summary.create_noop_writer()
    )

  def write_text(self, name: str, text: str) -> None:
    """Writes a text, as a block of code, to TensorBoard."""
    block = '\n'.join('    ' + line for line in text.splitlines())
    with self._writer.as_default(step=0):
      tf.summary.text(name, block)

  def write_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
    """Writes the numbers of an epoch, such as `train/loss`."""
    with self._writer.as_default(step=epoch):
      for name, value in values.items():
        tf.summary.scalar(name, value)
    self._writer.flush()
    self.rows.append({'epoch': epoch, **values})
    if not self._path:
      return
    with open(self._path + '.tmp', 'w', newline='', encoding='utf-8') as file:
      table = csv.DictWriter(file, list(self.rows[-1]), lineterminator='\n')
      table.writeheader()
      table.writerows(self.rows)
    os.replace(self._path + '.tmp', self._path)

  def write_slices(
    self, epoch: int, rows: Mapping[str, np.ndarray | None]
  ) -> None:
    """Writes the picture of `draw_slices` to TensorBoard."""
    canvas = backend_agg.FigureCanvasAgg(draw_slices(rows))
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[np.newaxis, ..., :3]
    with self._writer.as_default(step=epoch):
      tf.summary.image('slices', picture)
    self._writer.flush()


def read_history(workdir: str) -> list[dict[str, float]]:
  """Reads history.csv: a row per epoch, `epoch` an int, all else floats."""
  path = os.path.join(workdir, HISTORY_FILE)
  with open(path, newline='', encoding='utf-8') as file:
    return [
      {name: float(value) for name, value in row.items()}
      | {'epoch': int(row['epoch'])}
      for row in csv.DictReader(file)
    ]


def draw_slices(
  rows: Mapping[str, np.ndarray | None],
) -> matplotlib.figure.Figure:
  """Draws the middle axial slices of some cubes.

  Args:
    rows: by title, float (B, X, Y, Z, 1) in [0, 1] each; None is left out.

  Returns:
    A figure: a row per title, a column per cube; x runs right, y down, as
    radiologists look at a chest.
  """
  rows = {title: cubes for title, cubes in rows.items() if cubes is not None}
  columns = max(len(cubes) for cubes in rows.values())
  figure = matplotlib.figure.Figure(
    figsize=(1.5 * columns + 0.4, 1.6 * len(rows)), layout='constrained'
  )
  axes = figure.subplots(len(rows), columns, squeeze=False)
  for line, (title, cubes) in zip(axes, rows.items(), strict=True):
    line[0].set_ylabel(title)
    for ax, cube in zip(line, cubes, strict=True):
      ax.imshow(
        cube[:, :, cube.shape[2] // 2, 0].T, cmap='gray', vmin=0, vmax=1
      )
      ax.set_xticks([])
      ax.set_yticks([])
  return figure
