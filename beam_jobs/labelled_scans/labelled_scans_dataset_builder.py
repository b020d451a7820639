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
from beam_jobs import target_builder
from beam_jobs import target_cubes
from transvw_tf2 import errors
from transvw_tf2.scans import luna16
from transvw_tf2.scans import target_places

_CLASSIFICATION, _SEGMENTATION = 'classification', 'segmentation'
_TASKS = {
  _CLASSIFICATION: 'Classes of whole scans or of places.',
  _SEGMENTATION: 'Voxels that a mask marks.',
}


@dataclasses.dataclass
class BuilderConfig(target_builder.TargetConfig):
  """Settings of the cubes.

  Whole scans are always resampled, whatever `extent_mm`.

  Attributes:
    classes: names of the classes in order; by default those of the table,
      sorted. Any other is refused.
    whole_scan: with masks, the whole scan resampled instead of cubes.
    mask_cubes: with masks, cubes around the mask of each scan.
    mask_free_cubes: with masks, cubes of each scan without any of it.
  """

  OF_TASKS: ClassVar = {
    'classes': (_CLASSIFICATION,),
    **dict.fromkeys(
      ('jitter_mm', 'whole_scan', 'mask_cubes', 'mask_free_cubes'),
      (_SEGMENTATION,),
    ),
  }

  classes: tuple[str, ...] = ()
  whole_scan: bool = False
  mask_cubes: int = 8
  mask_free_cubes: int = 4

  def __post_init__(self):
    super().__post_init__()
    if not _are_names(self.classes):
      raise errors.UserError(
        'config field classes must be a list of different names, such as'
        f' ["benign", "malignant"], got {self.classes!r}'
      )
    builders.check_boolean(self, 'whole_scan')
    builders.check_number(self, 'mask_cubes', 1, int)
    builders.check_number(self, 'mask_free_cubes', 0, int)

  @classmethod
  def tasks(cls) -> dict[str, str]:
    """Returns what each task is, by its name."""
    return _TASKS


def _are_names(classes) -> bool:
  return (
    isinstance(classes, list | tuple)
    and all(one and isinstance(one, str) for one in classes)
    and len(set(classes)) == len(classes)
  )


class Builder(target_builder.TargetBuilder):
  """Cuts the cubes of your own target task."""

  VERSION = tfds.core.Version('1.1.0')
  RELEASE_NOTES: ClassVar = {
    '1.0.0': 'Initial release.',
    '1.1.0': 'Where in the scan each cube lies, as `place`.',
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  --manual_dir holds labels.csv and the scans that it names, with the columns
  scan,label or scan,mask or scan,x,y,z,label, and split if you like.
  """
  wanted = f'{label_table.TABLE_FILE} and the scans that it names'
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

  def make_requests(self, manual_dir, folder):
    """Returns what the table wants; a row that is of no use is an error."""
    config = self.builder_config
    table = label_table.read(manual_dir, config.classes)
    _check_kind(table, config.task)
    if table.classes:
      self.info.features['label'].names = list(table.classes)
    return _make_requests(manual_dir, table, config, folder), []


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
