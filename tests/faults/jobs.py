"""The jobs that faults are done to: their commands and what they write."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import glob
import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from beam_jobs import embedding_files
import beam_jobs.luna16_nodules
import beam_jobs.transvw_luna16  # noqa: F401, registers the builder
from tests.beam_jobs import tiny_scans
from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2.discovery import vocabulary
from transvw_tf2.models import unet3d
from transvw_tf2.scans import phantom
from transvw_tf2.serving import export
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import reports

TWO_PROCESSES = {
  'runner': 'FnApiRunner',
  'direct_num_workers': '2',
  'direct_running_mode': 'multi_processing',
}
_WORDS = {
  'words': 3,
  'xy_border': 4,
  'z_border': 4,
  'min_distance': 1,
}
_TRAINING = (
  *tiny_data.GIN,
  'train.batch_size = 2',
  'train.checkpoint_steps = 2',
  'train.epochs = 6',
  'train.jit_compile = False',
  'train.picture_epochs = 2',
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A command that writes to an output.

  Attributes:
    name: for people.
    command: gives the command for an output; module and arguments, or tfds.
    read: gives what it wrote, by name, in a form that can be compared.
    check_refused: raises AssertionError where a half output is accepted.
    whole: gives the path that is there only when all is done; None where a run
      goes on in what an earlier one left.
  """

  name: str
  command: Callable[[str], list[str]]
  read: Callable[[str], Mapping[str, object]]
  check_refused: Callable[[str], None]
  whole: Callable[[str], str] | None = None

  def on_two_processes(self) -> 'Job':
    """Returns the job with two worker processes."""
    options = [f'{name}={value}' for name, value in TWO_PROCESSES.items()]

    def command(output):
      more = (
        [f'--beam_pipeline_options={",".join(options)}']
        if self.command(output)[0] == 'tfds'
        else [f'--{one}' for one in options]
      )
      return [*self.command(output), *more]

    return dataclasses.replace(self, command=command)


def replace_folder(job: Job, old: str, new: str) -> Job:
  """Returns a job that finds its input in another folder."""

  def command(output):
    return [
      one
      if one.startswith(('--output=', '--data_dir=', '--workdir='))
      else one.replace(old, new)
      for one in job.command(output)
    ]

  return dataclasses.replace(job, command=command)


def check_same(one: Mapping[str, object], other: Mapping[str, object]) -> None:
  """Raises AssertionError unless two outputs are the same."""
  assert sorted(one) == sorted(other)
  for name, value in one.items():
    if isinstance(value, np.ndarray):
      np.testing.assert_array_equal(value, other[name], err_msg=name)
    else:
      assert value == other[name], name


def _flags(**named):
  return [f'--{name}={value}' for name, value in named.items()]


def _read_files(folder):
  found = {}
  for at, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(at, name)
      with open(path, 'rb') as file:
        found[os.path.relpath(path, folder)] = file.read()
  assert found
  return found


def make_discovery(scans: str, **more) -> Job:
  """Returns the job that discovers words."""

  def check_refused(output):
    # All or nothing.
    assert not os.path.exists(output)
    with pytest.raises(errors.UserError, match='no vocabulary in'):
      vocabulary.read_vocabulary(output)

  def read(output):
    assert not os.path.exists(f'{output}.incomplete')
    return _read_files(output)

  return Job(
    name='discover_words',
    command=lambda output: [
      'beam_jobs.discover_words',
      *_flags(scans=scans, output=output, **_WORDS, **more),
      '--quality',
    ],
    read=read,
    check_refused=check_refused,
    whole=lambda output: output,
  )


def _make_build(builder, version, scans, config) -> Job:
  def folder(output):
    return os.path.join(output, builder, config['name'])

  def check_refused(output):
    # TFDS and the training look for it in their ways.
    name = f'{builder}/{config["name"]}'
    with pytest.raises(
      (AssertionError, ValueError, tfds.core.DatasetNotFoundError),
      match=r'not found|Could not find',
    ):
      tfds.load(name, split='train', data_dir=output, download=False)
    with pytest.raises(OSError, match='Could not read dataset info'):
      tfds.builder_from_directory(os.path.join(folder(output), version))
    with pytest.raises(errors.UserError, match=r'does not exist|no data set'):
      built_data.open_data(output)

  def read(output):
    # Nor anything of runs before.
    assert os.listdir(folder(output)) == [version]
    found = _read_files(os.path.join(folder(output), version))
    splits = tfds.builder_from_directory(
      os.path.join(folder(output), version)
    ).info.splits
    assert splits['train'].num_examples > 0
    return found

  return Job(
    name=f'tfds build {builder}',
    command=lambda output: [
      *('tfds', 'build', builder),
      *_flags(
        imports=f'beam_jobs.{builder}',
        manual_dir=scans,
        data_dir=output,
        config=json.dumps(config),
      ),
    ],
    read=read,
    check_refused=check_refused,
    whole=lambda output: os.path.join(folder(output), version),
  )


def make_words_build(scans: str, **more) -> Job:
  """Returns the build of cubes with words."""
  config = {'name': 'tiny', **_WORDS, **more}
  return _make_build('transvw_luna16', '1.0.0', scans, config)


def make_nodules_build(scans: str) -> Job:
  """Returns the build of a target task."""
  config = {
    'name': 'tiny',
    'task': 'nodule_segmentation',
    'cube_shape': [16, 16, 8],
  }
  return _make_build('luna16_nodules', '1.1.0', scans, config)


def make_training(data: str) -> Job:
  """Returns a pre-training."""

  def check_refused(output):
    # Complete checkpoints alone are loaded.
    for which in (checkpoints.LATEST, checkpoints.BEST):
      try:
        _, description = checkpoints.load_model(output, which)
      except errors.UserError as error:
        assert 'no ' in str(error), error
      else:
        assert 0 <= description['epoch'] <= 6

  def read(output):
    found = {'model.json': _read_files(output)['model.json']}
    found['history.csv'] = reports.read_history(output)
    for row in found['history.csv']:
      del row['cubes_per_second']
    for which in (checkpoints.LATEST, checkpoints.BEST):
      folder = os.path.join(output, checkpoints.FOLDER, which)
      found |= _tensors(folder, which)
      # Nothing half-written, nothing that should have been removed.
      state = tf.train.get_checkpoint_state(folder)
      listed = {
        os.path.basename(path) for path in state.all_model_checkpoint_paths
      }
      names = {os.path.basename(one).partition('.')[0] for one in _all(folder)}
      assert names == listed | {'checkpoint'}
    return found

  return Job(
    name='train --deterministic',
    command=lambda output: [
      'transvw_tf2.train',
      '--gin_file=gin/runs/quickstart.gin',
      *(f'--gin_param={binding}' for binding in _TRAINING),
      *_flags(data=data, workdir=output, devices='cpu', threads=1),
      '--deterministic',
    ],
    read=read,
    check_refused=check_refused,
  )


def _all(folder):
  return glob.glob(os.path.join(glob.escape(folder), '*'))


def _tensors(folder, which):
  path = tf.train.latest_checkpoint(folder)
  reader = tf.train.load_checkpoint(path)
  tensors = {
    f'{which}/{name}': reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    # How the rest hangs together; how often this process saved.
    if not name.startswith(('_CHECKPOINTABLE', 'save_counter'))
  }
  progress = json.loads(tensors.pop(f'{which}/progress/.ATTRIBUTES/py_state'))
  del progress['seconds']
  return tensors | {f'{which}/progress': progress, which: path[-10:]}


def make_embedding(scans: str, model: str) -> Job:
  """Returns the job that embeds a folder of scans."""

  def check_refused(output):
    # What counts as finished is whole.
    with contextlib.suppress(errors.UserError):  # no scan yet
      for scan_id in embedding_files.list_scans(output):
        embedding_files.read_scan(output, scan_id)

  return Job(
    name='embed_scans',
    command=lambda output: [
      'beam_jobs.embed_scans',
      *_flags(scans=scans, model=model, output=output, stride='16,16,16'),
    ],
    read=_read_files,
    check_refused=check_refused,
  )


def make_all(folder: str) -> dict[str, Job]:
  """Makes scans, a data set and an encoder in a folder; returns the jobs."""

  def path(name):
    return os.path.join(folder, name)

  scans = tiny_scans.write_luna16(path('scans'), train=6, validation=2)
  phantom.write_luna16(path('nodules'), 10, (96, 96, 64), seed=7)
  network = unet3d.UNet3D(base_filters=1, depth=2)
  network.build((None, 64, 64, 32, 1))
  export.export_encoder(network, path('model'), {})
  made = (
    make_discovery(scans),
    make_words_build(scans),
    make_nodules_build(path('nodules')),
    make_training(tiny_data.write(path('data'))),
    make_embedding(scans, path('model')),
  )
  return {job.name: job for job in made}
