"""What a run leaves on disk to go on from: checkpoints and a description.

WORKDIR/model.json            the model's configuration, settings of the run
WORKDIR/checkpoints/latest/   everything a resumed run needs, the last few
WORKDIR/checkpoints/best/     the weights of the best epoch, train.best_metric
"""

from collections.abc import Sequence
import contextlib
import glob
import json
import os
import re
import shutil

from absl import logging
import keras
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2 import models  # noqa: F401, registers the networks
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.training import keras_file

BEST = 'best'
LATEST = 'latest'
DESCRIPTION_FILE = 'model.json'
FOLDER = 'checkpoints'
_WORKERS = '.workers'
# That descriptions of older runs lack.
_LATER_SETTINGS = (
  *('best_metric', 'learning_rate', 'start_from'),
  *('loss_weights', 'crop', 'perturbation'),
  *('schedule', 'early_stopping'),
)

# What TensorFlow raises for a checkpoint that is cut or of another model.
_DAMAGED = (AssertionError, IndexError, ValueError, tf.errors.OpError)


class Progress(tf.train.experimental.PythonState):
  """How far a run is; saved in its checkpoints as JSON.

  Attributes:
    epoch: complete epochs.
    step: steps done of the epoch that has begun.
    sums: of each loss over those steps.
    val_loss: of the last complete epoch.
    best: the lowest value so far by train.best_metric; of one that should rise,
      of its negative.
    accumulation: parts into which the batch of a replica is divided, more than
      asked for where the device had too little memory.
    seconds: of all calls together.
  """

  _FIELDS = (
    *('epoch', 'step', 'sums', 'val_loss', 'best'),
    *('accumulation', 'seconds'),
  )

  def __init__(self):
    self.epoch = 0
    self.step = 0
    self.sums: dict[str, float] = {}
    self.val_loss = float('inf')
    self.best: dict[str, float] = {}
    self.accumulation = 1
    self.seconds = 0.0

  def serialize(self) -> str:
    return json.dumps({name: getattr(self, name) for name in self._FIELDS})

  def deserialize(self, string_value: str) -> None:
    state = json.loads(string_value)
    # Of a run that was begun before there was train.best_metric.
    if 'best_val_loss' in state:
      state['best'] = {'loss': state.pop('best_val_loss')}
    for name, value in state.items():
      setattr(self, name, value)


class Checkpoints:
  """Writes and restores the checkpoints of a run."""

  def __init__(
    self,
    workdir: str,
    *,
    model: keras.Model,
    progress: Progress,
    keep: int = 3,
    worker: str | None = None,
    **state,
  ):
    """Initialises the checkpoints; the folders appear with the first one.

    Args:
      workdir: folder of the run.
      model: the network, built.
      progress: how far the run is.
      keep: latest checkpoints kept.
      worker: name of a worker that is not the chief; every worker of a cluster
        has to save, but only the chief's copy counts.
      **state: what else a resumed run needs: optimizer, schedules.
    """
    self._worker_folder = worker and os.path.join(workdir, _WORKERS, worker)
    folder = os.path.join(self._worker_folder or workdir, FOLDER)
    self._folder = os.path.join(workdir, FOLDER)
    for which in (LATEST, BEST):
      _repair_list(os.path.join(folder, which))
    self._full = tf.train.Checkpoint(model=model, progress=progress, **state)
    self._latest = tf.train.CheckpointManager(
      self._full, os.path.join(folder, LATEST), max_to_keep=keep
    )
    self._best = tf.train.CheckpointManager(
      tf.train.Checkpoint(model=model, progress=progress),
      os.path.join(folder, BEST),
      max_to_keep=1,
    )

  def close(self) -> None:
    """Removes what a worker that is not the chief had to write."""
    if self._worker_folder:
      shutil.rmtree(self._worker_folder, ignore_errors=True)
      with contextlib.suppress(OSError):  # not empty: of another worker
        os.rmdir(os.path.dirname(self._worker_folder))

  def restore(self) -> str | None:
    """Restores the newest latest checkpoint that is whole.

    Returns:
      Its path, or None where there is none.

    Raises:
      UserError: there are checkpoints, but none can be read.
    """
    paths = _find_checkpoints(os.path.join(self._folder, LATEST))
    for path in reversed(paths):
      try:
        found = self._full.read(path).assert_existing_objects_matched()
        # Of an older run there may be more than is asked for.
        found.expect_partial()
        return path
      except _DAMAGED as error:
        logging.warning(
          'checkpoint %s cannot be restored (%s): trying the one before',
          path,
          ' '.join(str(error).split())[:200],
        )
    if paths:
      raise errors.UserError(
        f'none of {len(paths)} checkpoints in {self._folder} can be restored:'
        ' start anew in another --workdir'
      )
    return None

  def remove_leftovers(self) -> None:
    """Removes what a run that was killed while it saved left half-written."""
    for manager in (self._latest, self._best):
      if _find_checkpoints(manager.directory):
        _remove_unlisted(manager.directory)

  def save_latest(self, number: int) -> None:
    """Saves everything; `number` becomes part of the name.

    Raises:
      UserError: it cannot be written; those before it are kept.
    """
    _save(self._latest, number)

  def save_best(self, number: int) -> None:
    """Saves the weights; raises as save_latest."""
    _save(self._best, number)


def _save(manager, number):
  try:
    manager.save(checkpoint_number=number)
  except (OSError, tf.errors.OpError) as error:
    # What is half-written has no entry in the folder's list of checkpoints.
    _remove_unlisted(manager.directory)
    raise errors.UserError(
      f'checkpoint {number} in {manager.directory} cannot be written'
      f' ({_reason(error)}): make room; the same command goes on from the last'
      ' one that is whole'
    ) from error


def _reason(error) -> str:
  # Without the names of TensorFlow's nodes, which come first.
  return ' '.join(re.sub(r'\{\{.*?\}\}', '', str(error)).split())[:300]


def _remove_unlisted(folder):
  listed = {os.path.basename(path) for path in _find_checkpoints(folder)}
  for path in glob.glob(os.path.join(glob.escape(folder), 'ckpt-*')):
    if os.path.basename(path).partition('.')[0] not in listed:
      if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
      else:
        os.remove(path)


def write_description(workdir: str, description: dict) -> None:
  """Writes model.json, or compares with the one of a run to be resumed.

  Args:
    workdir: folder of the run, existing.
    description: JSON values: `model` (configuration), `shape` of the volumes
      it takes, and the settings that must not change within a run.

  Raises:
    UserError: the folder belongs to a run with another description.
  """
  # As it will be read: tuples become lists.
  description = json.loads(json.dumps(description))
  path = os.path.join(workdir, DESCRIPTION_FILE)
  # One without a checkpoint is of a run that did not begin.
  begun = any(
    _find_checkpoints(os.path.join(workdir, FOLDER, which))
    for which in (LATEST, BEST)
  )
  if begun and os.path.exists(path):
    _compare(workdir, _read_description(workdir), description)
    return
  with (
    output_file.replacing(path) as partial,
    open(partial, 'w', encoding='utf-8') as file,
  ):
    json.dump(description, file, indent=1)
    file.write('\n')


def load_model(
  workdir: str, which: str = BEST
) -> tuple[keras.Model, dict[str, object]]:
  """Loads the network of a run, or of a file.

  Args:
    workdir: folder that transvw_tf2.train wrote, or a .keras file of a network
      that takes cubes, such as transvw_tf2.convert writes.
    which: 'best' or 'latest' of the run.

  Returns:
    The model, built, with its weights; and the description of the run with
    `checkpoint` (`which`) and its `epoch` and `val_loss`. Of a file that is no
    more than `weights` (its name), `volume` and `shape`, the published cubes'.

  Raises:
    UserError: there is no such run or checkpoint, or the file is no network of
      this package.
  """
  if workdir.endswith(keras_file.SUFFIX) and not os.path.isdir(workdir):
    if which != BEST:
      raise errors.UserError(
        f'{workdir} is a file, which has no {which} weights beside the best:'
        ' leave --checkpoint out'
      )
    return keras_file.load_network(workdir), {
      'weights': os.path.basename(workdir),
      'volume': 'cube',
      'shape': list(schema.CUBE_SHAPE),
    }
  description = _read_description(workdir)
  paths = _find_checkpoints(os.path.join(workdir, FOLDER, which))
  if not paths:
    raise errors.UserError(
      f'no {which} checkpoint in {workdir}: it is written after the first'
      ' epoch of transvw_tf2.train'
    )
  try:
    model = keras.saving.deserialize_keras_object(description['model'])
    if not model.built:
      model.build((None, *description['shape'], 1))
    progress = Progress()
    checkpoint = tf.train.Checkpoint(model=model, progress=progress)
    checkpoint.read(
      paths[-1]
    ).assert_existing_objects_matched().expect_partial()
  except (KeyError, TypeError, *_DAMAGED) as error:
    raise errors.UserError(
      f'checkpoint {paths[-1]} cannot be loaded'
      f' ({" ".join(str(error).split())[:200]}): train again'
    ) from error
  return model, {
    **description,
    'checkpoint': which,
    'epoch': progress.epoch,
    'val_loss': progress.val_loss,
  }


def _find_checkpoints(folder: str) -> Sequence[str]:
  """Returns the checkpoints of a folder, the newest last.

  Without their list (not copied with them, or cut) it is those that have an
  index, which is written last.
  """
  listed = _read_list(folder)
  if listed is not None:
    return listed
  paths = glob.glob(os.path.join(glob.escape(folder), 'ckpt-*.index'))
  numbers = {
    int(found[1]): path.removesuffix('.index')
    for path in paths
    if (found := re.search(r'ckpt-(\d+)\.index$', path))
  }
  return [numbers[one] for one in sorted(numbers)]


def _read_list(folder: str) -> Sequence[str] | None:
  """Returns what is in TensorFlow's list of checkpoints, None without one."""
  try:
    state = tf.train.get_checkpoint_state(folder)
  except ValueError:  # it is empty
    return None
  return state and state.all_model_checkpoint_paths


def _repair_list(folder: str) -> None:
  """Makes TensorFlow's list of checkpoints anew where they lack one.

  It would begin another, and their files would never be removed.
  """
  if _read_list(folder) is not None:
    return
  paths = _find_checkpoints(folder)
  if paths:
    names = [os.path.basename(path) for path in paths]
    tf.compat.v1.train.update_checkpoint_state(
      os.path.abspath(folder),
      names[-1],
      names,
      all_model_checkpoint_timestamps=[
        os.path.getmtime(f'{path}.index') for path in paths
      ],
      last_preserved_timestamp=0.0,
    )
  else:
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(folder, 'checkpoint'))


def _read_description(workdir: str) -> dict:
  path = os.path.join(workdir, DESCRIPTION_FILE)
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except FileNotFoundError as error:
    raise errors.UserError(
      f'no {DESCRIPTION_FILE} in workdir {workdir!r}: give the --workdir of'
      ' transvw_tf2.train'
    ) from error
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path} cannot be read ({error})') from error


def _compare(workdir: str, old: dict, new: dict) -> None:
  # A run that was begun before these were written down may have had any.
  old = {key: new[key] for key in _LATER_SETTINGS if key in new} | old
  changed = [key for key in new if old.get(key) != new[key]]
  if changed:
    key = changed[0]
    was, now = _shorten(old.get(key)), _shorten(new[key])
    raise errors.UserError(
      f'--workdir {workdir} belongs to a run with another {key}: {was}, now'
      f' {now}; give another --workdir or the settings of that run'
      f' ({os.path.join(workdir, "operative_config.gin")})'
    )


def _shorten(value) -> str:
  text = json.dumps(value)
  return text if len(text) <= 120 else text[:117] + '...'
