r"""TFDS builder: your own labelled scans -> cubes -> TFRecord shards.

  cd beam_jobs && tfds build labelled_scans --manual_dir FOLDER --data_dir DATA

or, from anywhere, with `--imports beam_jobs.labelled_scans`. FOLDER holds
labels.csv, see `label_table`, and the scans. Of the two tasks, classification
and segmentation, the one that fits the table is built. Settings come as JSON:
`--config '{"name": "small", "task": "classification",
"cube_shape": [32, 32, 16]}'`.
"""

import collections
import dataclasses
import os
from typing import ClassVar

import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import label_table
from beam_jobs import pipelines
from beam_jobs import record_writer
from beam_jobs import target_cubes
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.scans import target_cubes as cubes_lib
from transvw_tf2.scans import target_places

_CUBES_FOLDER = 'cubes.tmp'
_CLASSIFICATION, _SEGMENTATION = 'classification', 'segmentation'
_TASKS = {
  _CLASSIFICATION: 'Classes of whole scans or of places.',
  _SEGMENTATION: 'Voxels that a mask marks.',
}


@dataclasses.dataclass
class BuilderConfig(tfds.core.BuilderConfig):
  """Settings of the cubes.

  Attributes:
    task: classification or segmentation, as the columns of the table say.
    cube_shape: voxels of a cube along x, y and z, each divisible by 8.
    extent_mm: sides of the box that becomes a cube, mm; null takes as many
      voxels of the scan as the cube has. Whole scans are always resampled.
    classes: names of the classes in order; by default those of the table,
      sorted. Any other is refused.
    whole_scan: with masks, the whole scan resampled instead of cubes.
    mask_cubes: with masks, cubes around the mask of each scan.
    mask_free_cubes: with masks, cubes of each scan without any of it.
    jitter_mm: the middle of a cube around a mask is moved by up to so much.
    strict: stop where something cannot be used.
    seed: decides what is random.
  """

  task: str = ''
  cube_shape: tuple[int, ...] = cubes_lib.DEFAULT_SHAPE
  extent_mm: tuple[float, ...] | None = None
  classes: tuple[str, ...] = ()
  whole_scan: bool = False
  mask_cubes: int = 8
  mask_free_cubes: int = 4
  jitter_mm: float = 0.0
  strict: bool = False
  seed: int = 1

  def __new__(cls, *args, **fields):
    """Checks the names of the fields, which come from the JSON of --config."""
    builders.check_config_fields(
      cls, args, fields, '{"name": "small", "task": "classification"}'
    )
    return super().__new__(cls)

  def __post_init__(self):
    if self.task not in _TASKS:
      raise errors.UserError(
        f'config field task must be one of {", ".join(_TASKS)}, got'
        f' {self.task!r}'
      )
    self.cube()
    builders.check_number(self, 'mask_cubes', 1, int)
    builders.check_number(self, 'mask_free_cubes', 0, int)
    builders.check_number(self, 'jitter_mm', 0)
    builders.check_number(self, 'seed', 0, int)

  def cube(self) -> cubes_lib.CubeSize:
    """Returns the size of the cubes; a value out of range raises."""
    return cubes_lib.CubeSize(self.cube_shape, self.extent_mm)


class Builder(tfds.core.GeneratorBasedBuilder):
  """Cuts the cubes of your own target task."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'Initial release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  --manual_dir holds labels.csv and the scans that it names, with the columns
  scan,label or scan,mask or scan,x,y,z,label, and split if you like.
  """
  builder_config_cls = BuilderConfig
  BUILDER_CONFIGS: ClassVar = [
    BuilderConfig(name=name, task=name, description=description)
    for name, description in _TASKS.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    masked = config.task == _SEGMENTATION
    return self.dataset_info_from_configs(
      # The classes are those of the table.
      features=target_cubes.make_features(config.cube().shape, masks=masked),
      supervised_keys=('cube', 'mask' if masked else 'label'),
    )

  def _example_writer(self):
    return record_writer.DeterministicWriter(self.info.file_format)

  def download_and_prepare(self, **kwargs) -> None:
    """As in TFDS; leaves out the task that the table is not for."""
    try:
      super().download_and_prepare(**kwargs)
    except builders.NotForThisTaskError as error:
      if not builders.leaves_out(self.name, _TASKS):
        raise
      print(f'{self.builder_config.name} is left out: {error}')

  def _split_generators(self, dl_manager, pipeline):
    pipelines.prefer_local_engine(pipeline)
    config = self.builder_config
    manual_dir = builders.find_manual_dir(
      dl_manager, f'{label_table.TABLE_FILE} and the scans that it names'
    )
    table = label_table.read(manual_dir, config.classes)
    _check_kind(table, config.task)
    if table.classes:
      self.info.features['label'].names = list(table.classes)
    folder = os.fspath(self.data_path / _CUBES_FOLDER)
    requests = _make_requests(manual_dir, table, config, folder)
    rejected = target_cubes.cut_targets(
      requests,
      folder,
      strict=config.strict,
      runner=pipeline.runner,
      options=pipeline.options,
    )
    splits = target_cubes.report(
      config.name, os.fspath(self.data_path), requests, rejected, table.classes
    )
    return {
      split: self._generate_examples(
        [one for one in requests if one.split == split]
      )
      for split in splits
    }

  def _generate_examples(self, requests):
    return target_cubes.read_examples(requests)

  def _process_pipeline_result(self, pipeline_result):
    """Cleans up: TFDS calls this when all splits are written."""
    del pipeline_result
    (self.data_path / _CUBES_FOLDER).rmtree()


def _check_kind(table, task) -> None:
  masked = table.kind == label_table.MASKS
  if masked != (task == _SEGMENTATION):
    raise builders.NotForThisTaskError(
      f'{label_table.TABLE_FILE} has {table.kind}, which are not for {task}'
    )


def _make_requests(folder, table, config, output):
  """Returns what is wanted of each scan, sorted by scan."""
  by_scan = collections.defaultdict(list)
  for row in table.rows:
    by_scan[row.scan].append(row)
  requests = []
  for scan, rows in sorted(by_scan.items()):
    requests.append(
      target_cubes.Request(
        # Its path in the table: two folders may hold files of one name.
        scan_file=luna16.ScanFile(
          scan, os.path.join(folder, scan), rows[0].split
        ),
        split=rows[0].split,
        places=_places(folder, table, rows, config),
        cube=config.cube(),
        output=target_cubes.output_path(output, scan),
      )
    )
  return requests


def _places(folder, table, rows, config):
  """Returns what finds the cubes of a scan."""
  scan = rows[0].scan
  number = {name: place for place, name in enumerate(table.classes)}
  if table.kind == label_table.PLACES:
    points = tuple((row.place, number[row.label]) for row in rows)
    return target_places.AroundPoints(points, config.cube())
  if len(rows) > 1:
    raise errors.UserError(
      f'{label_table.TABLE_FILE} has {len(rows)} rows of {scan}, wanted one'
    )
  if table.kind == label_table.LABELS:
    return target_places.WholeScan(config.cube(), number[rows[0].label])
  mask_path = os.path.join(folder, rows[0].mask)
  if config.whole_scan:
    return target_places.WholeScan(config.cube(), mask_path=mask_path)
  return target_places.InMask(
    scan_id=scan,
    mask_path=mask_path,
    cube=config.cube(),
    cubes=config.mask_cubes,
    without=config.mask_free_cubes,
    jitter_mm=config.jitter_mm,
    seed=config.seed,
  )
