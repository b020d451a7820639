"""What a run shows: scalars, pictures and a table of its epochs."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import glob
import math
import os
import shutil

from matplotlib.backends import backend_agg
import matplotlib.colors
import matplotlib.figure
import matplotlib.ticker
import numpy as np
from PIL import Image
from tensorboard.plugins import projector
from tensorboard.plugins.projector import metadata as projector_names
import tensorflow as tf

from transvw_tf2 import errors

HISTORY_FILE = 'history.csv'
_TENSORBOARD = 'tensorboard'
# Where TensorBoard looks for it, beside the run's events.
_PROJECTOR = os.path.join('plugins', projector_names.PLUGIN_ASSETS_NAME)
_EMBEDDINGS, _WORDS, _SPRITE = 'embeddings.tsv', 'words.tsv', 'slices.png'

# Confusion: beyond so many words, cells hold no numbers and ticks are thinned.
_MOST_WITH_NUMBERS = 12
_MOST_TICKS = 44


class Reports:
  """Writes TensorBoard events and history.csv into a run's folder."""

  def __init__(self, workdir: str | None, complete_epochs: int):
    """Initialises the reports.

    Args:
      workdir: folder of the run; None writes nothing.
      complete_epochs: what was reported of later ones is of a run that was cut
        off and is resumed: it is dropped.

    Raises:
      UserError: history.csv is there but cannot be read.

    Its methods raise OSError where they cannot write.
    """
    self._path = workdir and os.path.join(workdir, HISTORY_FILE)
    self._folder = workdir and os.path.join(workdir, _TENSORBOARD)
    self._complete_epochs = complete_epochs
    known = workdir and os.path.exists(self._path)
    self.rows = [
      row
      for row in (read_history(workdir) if known else [])
      if row['epoch'] <= complete_epochs
    ]
    if not workdir:
      self._writer = tf.summary.create_noop_writer()
      return
    _drop_later_events(self._folder, complete_epochs)
    self._writer = tf.summary.create_file_writer(self._folder)

  def write_text(self, name: str, text: str) -> None:
    """Writes a text, as a block of code, to TensorBoard."""
    block = '\n'.join('    ' + line for line in text.splitlines())
    with self._events(self._complete_epochs):
      tf.summary.text(name, block)

  def write_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
    """Writes the numbers of an epoch, such as `train/loss`."""
    with self._events(epoch):
      for name, value in values.items():
        tf.summary.scalar(name, value)
    self.rows.append({'epoch': epoch, **values})
    if not self._path:
      return
    # Rows of another version of this program may have other columns.
    columns = {name: None for row in reversed(self.rows) for name in row}
    with open(self._path + '.tmp', 'w', newline='', encoding='utf-8') as file:
      table = csv.DictWriter(file, list(columns), lineterminator='\n')
      table.writeheader()
      table.writerows(self.rows)
    os.replace(self._path + '.tmp', self._path)

  def write_slices(
    self, epoch: int, rows: Mapping[str, np.ndarray | None]
  ) -> None:
    """Writes the picture of `draw_slices` to TensorBoard."""
    self.write_figure(epoch, 'slices', draw_slices(rows))

  def write_figure(
    self, epoch: int, title: str, figure: matplotlib.figure.Figure
  ) -> None:
    """Writes a figure to TensorBoard."""
    canvas = backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[np.newaxis, ..., :3]
    with self._events(epoch):
      tf.summary.image(title, picture)

  def write_projector(
    self,
    embeddings: np.ndarray,
    words: Sequence[str],
    pictures: np.ndarray | None = None,
  ) -> None:
    """Writes what TensorBoard's embedding projector shows.

    It replaces what was there; a TensorBoard that has shown that already does
    so until it is started again.

    Args:
      embeddings: float (N, D).
      words: the names of the N examples.
      pictures: float (N, X, Y, Z, 1) in [0, 1]; their middle axial slices
        stand for the points.
    """
    if self._folder:
      # One column has no header.
      folder = os.path.join(self._folder, _PROJECTOR)
      write_projector(folder, embeddings, [[word] for word in words], pictures)

  @contextlib.contextmanager
  def _events(self, step):
    try:
      with self._writer.as_default(step=step):  # flushes at its end
        yield
    except tf.errors.OpError as error:
      # As of any other file; a full disk is not a device without memory.
      raise OSError(' '.join(error.message.split())) from error


def write_projector(
  folder: str,
  embeddings: np.ndarray,
  rows: Sequence[Sequence[object]],
  pictures: np.ndarray | None = None,
) -> None:
  """Writes the files of an embedding projector; replaces what was there.

  Args:
    folder: what `tensorboard --logdir` is given, or where TensorBoard looks
      beside the events of a run; made where there is none.
    embeddings: float (N, D).
    rows: what is known of the N examples. One column has no header, several
      have: one row more, the first.
    pictures: float (N, X, Y, Z, 1) in [0, 1]; their middle axial slices stand
      for the points.

  Raises OSError where it cannot write.
  """
  config = projector.ProjectorConfig()
  # Not a checkpoint: the projector would list all that is in it.
  embedding = config.embeddings.add(
    tensor_name='embedding',
    tensor_path=_EMBEDDINGS,
    metadata_path=_WORDS,
    tensor_shape=embeddings.shape,
  )
  new = folder.rstrip(os.sep) + '.tmp'
  shutil.rmtree(new, ignore_errors=True)
  os.makedirs(new)
  np.savetxt(
    os.path.join(new, _EMBEDDINGS), embeddings, fmt='%.7g', delimiter='\t'
  )
  with open(os.path.join(new, _WORDS), 'w', encoding='utf-8') as file:
    for row in rows:
      # A tab would begin another column.
      file.write('\t'.join(' '.join(str(one).split()) for one in row) + '\n')
  if pictures is not None:
    embedding.sprite.image_path = _SPRITE
    embedding.sprite.single_image_dim.extend(pictures.shape[1:3])
    Image.fromarray(tile_slices(pictures)).save(os.path.join(new, _SPRITE))
  projector.visualize_embeddings(new, config)
  os.makedirs(folder, exist_ok=True)
  # The configuration last: it names the others.
  for name in sorted(
    os.listdir(new), key=projector_names.PROJECTOR_FILENAME.__eq__
  ):
    os.replace(os.path.join(new, name), os.path.join(folder, name))
  os.rmdir(new)


def read_history(workdir: str) -> list[dict[str, float]]:
  """Reads history.csv: a row per epoch, `epoch` an int, all else floats.

  A row lacks what was not written in its epoch.

  Raises:
    UserError: it is not there, or not such a table.
  """
  path = os.path.join(workdir, HISTORY_FILE)
  try:
    with open(path, newline='', encoding='utf-8') as file:
      return [
        {name: float(value) for name, value in row.items() if value}
        | {'epoch': int(row['epoch'])}
        for row in csv.DictReader(file)
      ]
  except FileNotFoundError as error:
    raise errors.UserError(
      f'no {HISTORY_FILE} in {workdir!r}: give the --workdir of'
      ' transvw_tf2.train'
    ) from error
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path} is not a table of epochs ({error!r}): move it away, the run'
      ' starts a new one'
    ) from error


def _drop_later_events(folder: str, complete_epochs: int) -> None:
  """Makes TensorBoard forget what was shown of later epochs.

  Its fast loader forgets by itself where the steps of a curve go back, the
  other one (on machines for which there is no fast one, or --load_fast=false)
  where a session starts; not at the first start that it sees, so there are two.
  TensorFlow 2 has no way to write them into the file of a writer.
  """
  known = glob.glob(os.path.join(glob.escape(folder), '*tfevents*'))
  if not known:
    return
  event = tf.compat.v1.Event
  version = event(file_version='brain.Event:2')
  start = event(
    step=complete_epochs + 1,
    session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
  )
  # Files are read in the order of their names.
  with tf.io.TFRecordWriter(max(known) + '-start') as file:
    for one in (version, start, start):
      file.write(one.SerializeToString())


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
    for ax, slice_ in zip(line, _middle_slices(cubes), strict=True):
      ax.imshow(slice_, cmap='gray', vmin=0, vmax=1)
      ax.set_xticks([])
      ax.set_yticks([])
  return figure


def draw_confusion(
  matrix: np.ndarray, names: Sequence[str]
) -> matplotlib.figure.Figure:
  """Draws which words are taken for which.

  Args:
    matrix: float (C, C), examples by true word (row) and named word (column).
    names: the C words.

  Returns:
    A figure: a row per true word, its colour the share of that word's
    examples, with a scale that tells small shares apart; words without
    examples are grey.
  """
  matrix = np.asarray(matrix, np.float64)
  count = len(names)
  total = matrix.sum()
  of_word = matrix.sum(axis=1, keepdims=True)
  with np.errstate(invalid='ignore'):
    shares = matrix / of_word  # NaN where there are no examples
  with_numbers = count <= _MOST_WITH_NUMBERS
  side = float(np.clip((0.4 if with_numbers else 0.2) * count, 3.2, 8.5))
  figure = matplotlib.figure.Figure(
    figsize=(side + 1.6, side + 0.9), layout='compressed'
  )
  ax = figure.subplots()
  ax.set_facecolor('lightgray')
  image = ax.imshow(
    shares,
    cmap='magma_r',
    norm=matplotlib.colors.PowerNorm(0.5, vmin=0, vmax=1),
    interpolation='nearest',
  )
  figure.colorbar(
    image,
    ax=ax,
    label='share of the true word',
    ticks=(0, 0.01, 0.05, 0.2, 0.5, 1),
    format=matplotlib.ticker.PercentFormatter(1, decimals=0),
    aspect=30,
  )
  ticks = np.arange(0, count, _tick_step(count))
  labels = [names[tick] for tick in ticks]
  ax.set_xticks(ticks, labels, rotation=90, fontsize=7)
  ax.set_yticks(ticks, labels, fontsize=7)
  ax.set_xlabel('named word')
  ax.set_ylabel('true word')
  accuracy = f'{np.trace(matrix) / total:.1%}' if total else 'unknown'
  ax.set_title(f'accuracy {accuracy} of {total:,.0f} examples', fontsize=10)
  if with_numbers:
    for (row, column), share in np.ndenumerate(shares):
      if share > 0:
        ax.text(
          column,
          row,
          f'{share:.0%}',
          ha='center',
          va='center',
          fontsize=8,
          color='white' if share > 0.2 else 'black',
        )
  return figure


def _tick_step(count: int) -> int:
  """Returns the smallest round step with at most _MOST_TICKS ticks."""
  for step in (1, 2, 5, 10, 20, 50):
    if count <= step * _MOST_TICKS:
      return step
  return math.ceil(count / _MOST_TICKS)


def tile_slices(cubes: np.ndarray) -> np.ndarray:
  """Tiles middle axial slices, row by row, in a square of tiles.

  Args:
    cubes: float (N, X, Y, Z, 1) in [0, 1].

  Returns:
    uint8 (side * Y, side * X), side = ceil(sqrt(N)); what is left is black.
  """
  slices = _middle_slices(cubes)
  count, height, width = slices.shape
  side = math.ceil(math.sqrt(count))
  tiles = np.zeros((side * side, height, width), np.uint8)
  tiles[:count] = np.rint(255 * np.clip(slices, 0, 1))
  tiles = tiles.reshape(side, side, height, width).swapaxes(1, 2)
  return tiles.reshape(side * height, side * width)


def _middle_slices(cubes: np.ndarray) -> np.ndarray:
  """Returns (N, Y, X): x runs right, y down."""
  return cubes[:, :, :, cubes.shape[3] // 2, 0].swapaxes(1, 2)
