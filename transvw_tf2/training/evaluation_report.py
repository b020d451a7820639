"""Writes how good a network is: metrics, predictions and a picture."""

import csv
import dataclasses
import json
import math
import os

from matplotlib.backends import backend_agg
from sklearn import metrics as sklearn_metrics

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2.training import checkpoints
from transvw_tf2.training import evaluation
from transvw_tf2.training import target_reports

METRICS_FILE = 'metrics.json'
PREDICTIONS_FILE = 'predictions.csv'


def evaluate(
  workdir: str,
  data_dir: str,
  output: str,
  *,
  split: str = 'test',
  checkpoint: str = checkpoints.BEST,
  probe: str | None = None,
  neighbours: int = 5,
  batch_size: int = 16,
  resamples: int = 1000,
  seed: int = 1,
) -> dict[str, evaluation.Metric]:
  """Measures the network of a run and writes a folder.

  Args:
    workdir: of the run, or a .keras file where there is a probe.
    data_dir: built data set of the target task.
    output: folder to write; what is in it is replaced file by file.
    split: to be measured.
    checkpoint: 'best' or 'latest'.
    probe: classify by embeddings, see `evaluation.probe_classes`.
    neighbours: see there.
    batch_size: cubes at a time.
    resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The metrics by name.

  Raises:
    UserError: the run, the data or what they have to do with each other is
      wrong, or the folder cannot be written.
  """
  output_file.check_folder(output)  # before the work of many minutes
  model, description = checkpoints.load_model(workdir, checkpoint)
  task = description.get('task')
  if probe is None and task not in ('Classification', 'Segmentation'):
    raise errors.UserError(
      f'--workdir {workdir} is {f"a run of {task}" if task else "no run"},'
      ' wanted one of Classification or Segmentation: fine-tune it first, or'
      ' classify its embeddings with --probe'
    )
  masks = probe is None and task == 'Segmentation'
  data = evaluation.open_data(data_dir, 'mask' if masks else 'label')
  if probe is None:
    _check_shape(workdir, description, data)
  if masks:
    found = evaluation.predict_masks(model, data, split, batch_size)
    metrics = evaluation.measure_masks(found, resamples=resamples, seed=seed)
  else:
    if probe:
      found = evaluation.probe_classes(
        model, data, split, batch_size, probe, neighbours
      )
    else:
      _check_classes(workdir, description, data)
      found = evaluation.predict_classes(model, data, split, batch_size)
    metrics = evaluation.measure_classes(
      found, data.classes, resamples=resamples, seed=seed
    )
  settings = {
    'workdir': workdir,
    'checkpoint': description.get('checkpoint'),
    'epoch': description.get('epoch'),
    'data': data.data_dir,
    'split': split,
    'examples': len(found.scan_ids),
    'scans': len(set(found.scan_ids)),
    'probe': probe,
    'neighbours': neighbours if probe == evaluation.NEIGHBOURS else None,
    'resamples': resamples,
    'seed': seed,
  }
  try:
    os.makedirs(output, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'--output {output} cannot be made ({error}): give another folder'
    ) from error
  _write(output, metrics, settings, found, data.classes)
  return metrics


def _check_shape(workdir, description, data) -> None:
  if tuple(description['shape']) != data.shape:
    raise errors.UserError(
      f'--workdir {workdir} was trained on cubes of {description["shape"]}'
      f' voxels, data set {data.data_dir} has {list(data.shape)}: give the data'
      ' set it was trained on, or one with the same cube_shape'
    )


def _check_classes(workdir, description, data) -> None:
  if tuple(description['classes']) != data.classes:
    raise errors.UserError(
      f'--workdir {workdir} knows the classes'
      f' {", ".join(description["classes"])}, data set {data.data_dir} has'
      f' {", ".join(data.classes)}: give the data set it was trained on'
    )


def _write(output, metrics, settings, found, classes) -> None:
  table = {
    name: {
      # JSON has no NaN.
      key: value if math.isfinite(value) else None
      for key, value in dataclasses.asdict(metric).items()
    }
    for name, metric in metrics.items()
  }
  with (
    output_file.replacing(os.path.join(output, METRICS_FILE)) as partial,
    open(partial, 'w', encoding='utf-8') as file,
  ):
    json.dump({**settings, 'metrics': table}, file, indent=1)
    file.write('\n')
  if found.label is None:
    if len(found.pictures['cubes']):
      _save(target_reports.draw_overlays(**found.pictures), output, 'overlays')
    return
  _write_predictions(output, found, classes)
  curves = {}
  for number in range(1 if len(classes) == 2 else 0, len(classes)):
    false, true, _ = sklearn_metrics.roc_curve(
      found.label == number, found.probabilities[:, number]
    )
    curves[classes[number]] = (false, true)
  _save(target_reports.draw_roc(curves), output, 'roc')


def _write_predictions(output, found, classes) -> None:
  with (
    output_file.replacing(os.path.join(output, PREDICTIONS_FILE)) as partial,
    open(partial, 'w', newline='', encoding='utf-8') as file,
  ):
    rows = csv.writer(file, lineterminator='\n')
    axes, places = 'xyz', found.places
    if places is None:
      axes, places = '', [()] * len(found.scan_ids)
    rows.writerow(['scan_id', *axes, 'label', *classes])
    for scan_id, place, label, scores in zip(
      found.scan_ids, places, found.label, found.probabilities, strict=True
    ):
      rows.writerow(
        [
          *(scan_id, *place, classes[label]),
          *(f'{score:.6g}' for score in scores),
        ]
      )


def _save(figure, output, name) -> None:
  backend_agg.FigureCanvasAgg(figure)
  path = os.path.join(output, f'{name}.png')
  with output_file.replacing(path) as partial:
    figure.savefig(partial, dpi=150, format='png')
