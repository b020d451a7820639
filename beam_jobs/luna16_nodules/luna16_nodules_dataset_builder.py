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
from typing import ClassVar

import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import nodule_requests
from beam_jobs import target_builder
from beam_jobs import target_cubes
from transvw_tf2 import errors
from transvw_tf2.scans import luna16


@dataclasses.dataclass
class BuilderConfig(target_builder.TargetConfig):
  """Settings of a task.

  Attributes:
    negatives_per_positive: candidates that are no nodules for each that is, in
      each split, drawn by seed; null takes all.
    masks: folder with masks of nodules, {scan id}.mhd or another format, in the
      geometry of their scans; null draws balls.
    without_nodule: cubes without a nodule for each with one, in the lungs where
      seg-lungs-LUNA16 has their mask, else anywhere in the scan.
    lung_cubes: of each scan.
  """

  OF_TASKS: ClassVar = {
    'negatives_per_positive': (nodule_requests.FALSE_POSITIVE_REDUCTION,),
    'masks': (nodule_requests.NODULE_SEGMENTATION,),
    'jitter_mm': (
      nodule_requests.NODULE_SEGMENTATION,
      nodule_requests.LUNG_SEGMENTATION,
    ),
    'without_nodule': (nodule_requests.NODULE_SEGMENTATION,),
    'lung_cubes': (nodule_requests.LUNG_SEGMENTATION,),
  }

  negatives_per_positive: float | None = 3.0
  masks: str | None = None
  without_nodule: float = 0.0
  lung_cubes: int = 8

  def __post_init__(self):
    super().__post_init__()
    if self.negatives_per_positive is not None:
      builders.check_number(self, 'negatives_per_positive', 0)
    builders.check_number(self, 'without_nodule', 0)
    builders.check_number(self, 'lung_cubes', 1, int)
    if not isinstance(self.masks, str | None):
      raise errors.UserError(
        f'config field masks must be a folder, got {self.masks!r}'
      )

  @classmethod
  def tasks(cls) -> dict[str, str]:
    """Returns what each task is, by its name."""
    return nodule_requests.TASKS


class Builder(target_builder.TargetBuilder):
  """Cuts the cubes of a target task out of LUNA16."""

  VERSION = tfds.core.Version('1.1.0')
  RELEASE_NOTES: ClassVar = {
    '1.0.0': 'Initial release.',
    '1.1.0': 'Where in the scan each cube lies, as `place`.',
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  --manual_dir is LUNA16 from https://luna16.grand-challenge.org/Download/:
  subset0/ .. subset9/ with {SeriesInstanceUID}.mhd and .raw, and beside them
  candidates_V2.csv, annotations.csv and seg-lungs-LUNA16/, as far as the tasks
  need them.
  """
  wanted = 'subset0 .. subset9 of LUNA16 and the files that come with it'
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

  def make_requests(self, manual_dir, folder):
    """Returns what `nodule_requests.make_requests` does."""
    return nodule_requests.make_requests(
      manual_dir, luna16.find_scans(manual_dir), self.builder_config, folder
    )
