r"""TFDS builder: LUNA16 -> cubes of its target tasks -> TFRecord shards.

  cd beam_jobs && tfds build luna16_nodules --manual_dir LUNA16 --data_dir DATA

builds all three tasks; one whose file is missing is left out with a line. One
task alone, from anywhere:

  tfds build luna16_nodules/nodule_segmentation \
      --imports beam_jobs.luna16_nodules --manual_dir LUNA16 --data_dir DATA

Settings come as JSON: `--config '{"name": "small", "task":
"false_positive_reduction", "cube_shape": [32, 32, 16]}'`. Beam options as for
transvw_luna16.
"""

import dataclasses
import os
from typing import ClassVar

import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import nodule_requests
from beam_jobs import pipelines
from beam_jobs import record_writer
from beam_jobs import target_cubes
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.scans import target_cubes as cubes_lib

_WANTED = 'subset0 .. subset9 of LUNA16 and the files that come with it'
_CUBES_FOLDER = 'cubes.tmp'
# The tasks that read a field of the config; all read the others.
_OF_TASKS = {
  'negatives_per_positive': (nodule_requests.FALSE_POSITIVE_REDUCTION,),
  'masks': (nodule_requests.NODULE_SEGMENTATION,),
  'jitter_mm': (
    nodule_requests.NODULE_SEGMENTATION,
    nodule_requests.LUNG_SEGMENTATION,
  ),
  'without_nodule': (nodule_requests.NODULE_SEGMENTATION,),
  'lung_cubes': (nodule_requests.LUNG_SEGMENTATION,),
}


@dataclasses.dataclass
class BuilderConfig(tfds.core.BuilderConfig):
  """Settings of a task.

  Attributes:
    task: false_positive_reduction, nodule_segmentation or lung_segmentation.
    cube_shape: voxels of a cube along x, y and z, each divisible by 8.
    extent_mm: sides of the box that becomes a cube, mm; null takes as many
      voxels of the scan as the cube has.
    negatives_per_positive: candidates that are no nodules for each that is, in
      each split, drawn by seed; null takes all.
    masks: folder with masks of nodules, {scan id}.mhd or another format, in the
      geometry of their scans; null draws balls.
    jitter_mm: the middle of a cube with a nodule is moved by up to so much
      along each axis.
    without_nodule: cubes without a nodule for each with one.
    lung_cubes: of each scan.
    strict: stop where something cannot be used.
    seed: decides what is random.
  """

  task: str = ''
  cube_shape: tuple[int, ...] = cubes_lib.DEFAULT_SHAPE
  extent_mm: tuple[float, ...] | None = None
  negatives_per_positive: float | None = 3.0
  masks: str | None = None
  jitter_mm: float = 0.0
  without_nodule: float = 0.0
  lung_cubes: int = 8
  strict: bool = False
  seed: int = 1

  def __new__(cls, *args, **fields):
    """Checks the names of the fields, which come from the JSON of --config."""
    builders.check_config_fields(
      cls,
      args,
      fields,
      '{"name": "small", "task": "nodule_segmentation"}',
    )
    return super().__new__(cls)

  def __post_init__(self):
    if self.task not in nodule_requests.TASKS:
      raise errors.UserError(
        f'config field task must be one of {", ".join(nodule_requests.TASKS)},'
        f' got {self.task!r}'
      )
    self.cube()
    if self.negatives_per_positive is not None:
      builders.check_number(self, 'negatives_per_positive', 0)
    builders.check_number(self, 'jitter_mm', 0)
    builders.check_number(self, 'without_nodule', 0)
    builders.check_number(self, 'lung_cubes', 1, int)
    builders.check_number(self, 'seed', 0, int)
    if not isinstance(self.masks, str | None):
      raise errors.UserError(
        f'config field masks must be a folder, got {self.masks!r}'
      )
    for field in dataclasses.fields(self):
      tasks = _OF_TASKS.get(field.name, (self.task,))
      if self.task not in tasks and getattr(self, field.name) != field.default:
        raise errors.UserError(
          f'config field {field.name} is for {" and ".join(tasks)}, not for'
          f' {self.task}: leave it out'
        )

  def cube(self) -> cubes_lib.CubeSize:
    """Returns the size of the cubes; a value out of range raises."""
    return cubes_lib.CubeSize(self.cube_shape, self.extent_mm)


class Builder(tfds.core.GeneratorBasedBuilder):
  """Cuts the cubes of a target task out of LUNA16."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'Initial release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  --manual_dir is LUNA16 from https://luna16.grand-challenge.org/Download/:
  subset0/ .. subset9/ with {SeriesInstanceUID}.mhd and .raw, and beside them
  candidates_V2.csv, annotations.csv and seg-lungs-LUNA16/, as far as the tasks
  need them.
  """
  builder_config_cls = BuilderConfig
  BUILDER_CONFIGS: ClassVar = [
    BuilderConfig(name=name, task=name, description=description)
    for name, description in nodule_requests.TASKS.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    classes = nodule_requests.classes_of(config.task)
    return self.dataset_info_from_configs(
      features=target_cubes.make_features(
        config.cube().shape, classes, masks=not classes
      ),
      supervised_keys=('cube', 'label' if classes else 'mask'),
      homepage='https://luna16.grand-challenge.org',
    )

  def _example_writer(self):
    return record_writer.DeterministicWriter(self.info.file_format)

  def download_and_prepare(self, **kwargs) -> None:
    """As in TFDS; of several tasks, leaves out one whose file is missing."""
    try:
      super().download_and_prepare(**kwargs)
    except builders.NotForThisTaskError as error:
      if not builders.leaves_out(self.name, nodule_requests.TASKS):
        raise
      print(f'{self.builder_config.name} is left out: {error}')

  def _split_generators(self, dl_manager, pipeline):
    pipelines.prefer_local_engine(pipeline)
    config = self.builder_config
    manual_dir = builders.find_manual_dir(dl_manager, _WANTED)
    folder = os.fspath(self.data_path / _CUBES_FOLDER)
    requests, unknown = nodule_requests.make_requests(
      manual_dir, luna16.find_scans(manual_dir), config, folder
    )
    if unknown and config.strict:
      raise target_cubes.strict_error(': '.join(min(unknown)))
    rejected = target_cubes.cut_targets(
      requests,
      folder,
      strict=config.strict,
      runner=pipeline.runner,
      options=pipeline.options,
    )
    splits = target_cubes.report(
      config.name,
      os.fspath(self.data_path),
      requests,
      sorted(unknown + rejected),
      nodule_requests.classes_of(config.task),
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
