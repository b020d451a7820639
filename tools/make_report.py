r"""Pictures and figures of a data set and a run trained on it.

  python tools/make_report.py --data DATA --workdir WORKDIR --output REPORT

Writes words.png (a row per visual word, patients across), slices.png (cubes,
perturbed and restored) and curves.png, and prints what the run reached.
"""

import csv
import json
import os

from absl import flags
import matplotlib.figure
import numpy as np
import tensorflow_datasets as tfds

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_file
from transvw_tf2 import schema
from transvw_tf2.discovery import vocabulary
from transvw_tf2.training import built_data
from transvw_tf2.training import checkpoints
from transvw_tf2.training import gin_files
from transvw_tf2.training import input_pipeline
from transvw_tf2.training import loop
from transvw_tf2.training import reports
from transvw_tf2.training import step
from transvw_tf2.training import tasks

_DATA = flags.DEFINE_string('data', None, 'Built data set.', required=True)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder that transvw_tf2.train wrote.', required=True
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder for the pictures.', required=True
)
_PATIENTS = flags.DEFINE_integer(
  'patients', 8, 'Patients per word.', lower_bound=2
)
_CUBES = flags.DEFINE_integer('cubes', 8, 'Cubes restored.', lower_bound=1)
_CHECK = flags.DEFINE_boolean(
  'check', False, 'Fail unless the run has learned to restore and to name.'
)


def draw_words(data, patients: int) -> matplotlib.figure.Figure:
  """Draws the nearest patients of each word: training, then validation."""
  rows = {}
  for split in (schema.TRAIN, schema.VALIDATION):
    dataset = data.builder.as_dataset(
      split,
      decoders=tfds.decode.PartialDecoding(
        {'cube': True, 'word': True, 'rank': True, 'resolution': True}
      ),
    )
    dataset = dataset.filter(
      lambda one: (one['resolution'] == 0) & (one['rank'] < patients // 2)
    )
    for one in sorted(
      dataset.as_numpy_iterator(), key=lambda one: (one['word'], one['rank'])
    ):
      name = f'word {data.words[one["word"]]}'
      cube = schema.scale_hu(one['cube'].astype(np.float32))
      rows.setdefault(name, []).append(cube[..., np.newaxis])
  return reports.draw_slices(
    {name: np.stack(cubes) for name, cubes in sorted(rows.items())}
  )


def draw_restoration(data, workdir: str, cubes: int):
  """Draws validation cubes, perturbed and restored by the best weights."""
  model, metadata = checkpoints.load_model(workdir)
  if metadata.get('task') != tasks.Pretrain.__name__:
    raise errors.UserError(
      f'--workdir {workdir} is of the task {metadata.get("task")}, wanted a run'
      f' of {tasks.Pretrain.__name__}, which restores cubes and names words'
    )
  gin_files.parse([os.path.join(workdir, loop.OPERATIVE_CONFIG_FILE)])
  dataset = input_pipeline.make_dataset(data, schema.VALIDATION, cubes)
  batch = next(iter(dataset))
  seed = step.stream_seed(metadata['seed'], step.VALIDATION_STREAM, 0)
  perturbed = tasks.make_perturb()(
    batch['cube'], step.example_seeds(seed, batch['index'])
  )
  outputs = model(perturbed, training=False)
  return reports.draw_slices(
    {
      'original': batch['cube'].numpy(),
      'perturbed': perturbed.numpy(),
      'restored': outputs['restored'].numpy(),
    }
  )


def draw_curves(history, chance: float) -> matplotlib.figure.Figure:
  """Draws losses and word accuracy over the epochs."""
  figure = matplotlib.figure.Figure(figsize=(10, 3), layout='constrained')
  epochs = [row['epoch'] for row in history]
  names = ('loss', 'mse', 'accuracy')
  for ax, name in zip(figure.subplots(1, 3), names, strict=True):
    for split in ('train', 'validation'):
      ax.plot(epochs, [row[f'{split}/{name}'] for row in history], label=split)
    if name == 'mse':
      limit = history[-1]['validation/perturbed_mse']
      ax.axhline(limit, color='gray', ls=':', label='perturbed input')
    if name == 'accuracy':
      ax.axhline(chance, color='gray', ls=':', label='chance')
    ax.set(xlabel='epoch', title=name)
    ax.legend()
  return figure


def summarise(data, history) -> list[tuple[str, bool]]:
  """Returns what the run reached: lines, and whether each is good."""
  first, last = history[0], history[-1]
  ratio = last['validation/loss'] / first['validation/loss']
  mse, perturbed = (
    last[f'validation/{name}'] for name in ('mse', 'perturbed_mse')
  )
  times = last['validation/accuracy'] * len(data.words)
  return [
    (
      f'validation loss: {first["validation/loss"]:.4f} after the first epoch,'
      f' {last["validation/loss"]:.4f} after the last: {ratio:.2f} of it'
      ' (wanted 0.70 or less)',
      ratio <= 0.7,
    ),
    (
      f'restoration MSE: {mse:.4f}, returning the perturbed input'
      f' {perturbed:.4f} (wanted less)',
      mse < perturbed,
    ),
    (
      f'word accuracy on validation patients: {last["validation/accuracy"]:.3f}'
      f', {times:.1f} times chance (wanted 3 or more)',
      times >= 3,
    ),
  ]


def print_data(data) -> None:
  """Prints what the data set holds."""
  with open(
    os.path.join(data.data_dir, vocabulary.REJECTED_FILE), encoding='utf-8'
  ) as file:
    rejected = len(list(csv.DictReader(file)))
  shards = sum(split.num_shards for split in data.builder.info.splits.values())
  print(
    f'words: {len(data.words)}, cubes: {sum(data.sizes.values())}'
    f' {json.dumps(data.sizes)}, shards: {shards}, rejected scans: {rejected}'
  )


def main(argv):
  del argv
  output_file.check_folder(_OUTPUT.value)
  data = built_data.open_data(_DATA.value)
  history = reports.read_history(_WORKDIR.value)
  figures = {
    'slices': draw_restoration(data, _WORKDIR.value, _CUBES.value),
    'words': draw_words(data, _PATIENTS.value),
    'curves': draw_curves(history, 1 / len(data.words)),
  }
  os.makedirs(_OUTPUT.value, exist_ok=True)
  for name, figure in figures.items():
    figure.savefig(os.path.join(_OUTPUT.value, f'{name}.png'), dpi=80)
  print_data(data)
  lines = summarise(data, history)
  for line, _ in lines:
    print(line)
  short = [line for line, good in lines if not good]
  if _CHECK.value and short:
    raise errors.UserError(f'the run has not learned enough: {short[0]}')


if __name__ == '__main__':
  mains.run(main)
