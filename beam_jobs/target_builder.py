"""What the builders of target tasks share: settings, passes, reports."""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import os
from typing import ClassVar

import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import record_writer
from beam_jobs import target_cubes
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.scans import target_cubes as cubes_lib

REJECTED_FILE = 'rejected.csv'
# Removed when the shards are written.
_CUBES_FOLDER = 'cubes.tmp'


@dataclasses.dataclass
class TargetConfig(tfds.core.BuilderConfig):
  """Settings of all target tasks.

  Attributes:
    task: one of the builder's tasks.
    cube_shape: voxels of a cube along x, y and z, each divisible by 8.
    extent_mm: sides of the box that becomes a cube, mm; null takes as many
      voxels of the scan as the cube has.
    jitter_mm: the middle of a cube in a mask is moved by up to so much along
      each axis.
    strict: stop at the first thing that cannot be used.
    seed: decides what is random.
  """

  # The tasks that read a field; all read the others.
  OF_TASKS: ClassVar[Mapping[str, tuple[str, ...]]] = {}

  task: str = ''
  cube_shape: tuple[int, ...] = cubes_lib.DEFAULT_SHAPE
  extent_mm: tuple[float, ...] | None = None
  jitter_mm: float = 0.0
  strict: bool = False
  seed: int = 1

  def __new__(cls, *args, **fields):
    """Checks the names of the fields, which come from the JSON of --config."""
    example = f'{{"name": "small", "task": "{next(iter(cls.tasks()))}"}}'
    builders.check_config_fields(cls, args, fields, example)
    return super().__new__(cls)

  def __post_init__(self):
    if self.task not in self.tasks():
      raise errors.UserError(
        f'config field task must be one of {", ".join(self.tasks())}, got'
        f' {self.task!r}'
      )
    self.cube()
    builders.check_number(self, 'jitter_mm', 0)
    builders.check_boolean(self, 'strict')
    builders.check_number(self, 'seed', 0, int)
    for field in dataclasses.fields(self):
      tasks = self.OF_TASKS.get(field.name, (self.task,))
      if self.task not in tasks and getattr(self, field.name) != field.default:
        raise errors.UserError(
          f'config field {field.name} is for {" and ".join(tasks)}, not for'
          f' {self.task}: leave it out'
        )

  @classmethod
  def tasks(cls) -> dict[str, str]:
    """Returns what each task is, by its name."""
    raise NotImplementedError

  def cube(self) -> cubes_lib.CubeSize:
    """Returns the size of the cubes; a value out of range raises."""
    return cubes_lib.CubeSize(self.cube_shape, self.extent_mm)


class TargetBuilder(
  builders.OneBuild, tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Cuts the cubes of a target task.

  A builder has a named config for each of its tasks; `tfds build` that names
  none makes all that can be made.

  Attributes:
    wanted: what --manual_dir must hold, for messages.
  """

  wanted: str

  def make_requests(
    self, manual_dir: str, folder: str
  ) -> tuple[list[target_cubes.Request], list[tuple[str, str, str]]]:
    """Returns what is wanted, sorted by scan, and rows that are of no use.

    Args:
      manual_dir: of the user.
      folder: where the files of cubes will lie.

    Returns:
      The requests, and (scan id, reason, detail).

    Raises:
      NotForThisTaskError: what the task is made of is not there.
      UserError: it is broken.
    """
    raise NotImplementedError

  def _example_writer(self):
    return record_writer.DeterministicWriter(self.info.file_format)

  def download_and_prepare(self, **kwargs) -> None:
    """As in TFDS; of several tasks, leaves out one that cannot be made."""
    try:
      super().download_and_prepare(**kwargs)
    except builders.NotForThisTaskError as error:
      if not builders.leaves_out(self.name, self.builder_config.tasks()):
        raise
      print(f'{self.builder_config.name} is left out: {error}')

  def _split_generators(self, dl_manager, pipeline):
    pipelines.prefer_local_engine(pipeline)
    config = self.builder_config
    folder = os.path.join(builders.local_folder(self.data_path), _CUBES_FOLDER)
    requests, unknown = self.make_requests(
      builders.find_manual_dir(dl_manager, self.wanted), folder
    )
    if unknown and config.strict:
      raise target_cubes.strict_error(': '.join(min(unknown)))
    features = self.info.features
    target_cubes.plan_targets(
      requests,
      'mask' in features,
      os.fspath(self.data_path.parent),
      pipeline.options,
    ).announce()
    rejected = target_cubes.cut_targets(
      requests,
      folder,
      strict=config.strict,
      runner=pipeline.runner,
      options=pipeline.options,
    )
    counts = target_cubes.count_examples(requests)
    splits = _report(
      config.name,
      os.fspath(self.data_path),
      counts,
      sorted(unknown + rejected),
      features['label'].names if 'label' in features else (),
    )
    files = [one.scan_file for one in requests]
    progress.write_counters(
      os.fspath(self.data_path),
      cubes={
        'scans_read': len(files),
        'bytes_read': plan.count_bytes(files) or None,
        'rejected': progress.count_reasons(
          [reason for _, reason, _ in unknown + rejected]
        ),
        'cubes': {split: one.total() for split, one in counts.items()},
      },
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


def _report(
  name: str,
  folder: str,
  counts: Mapping[str, collections.Counter[int]],
  rejected: Sequence[tuple[str, str, str]],
  classes: Sequence[str],
) -> list[str]:
  """Writes rejected.csv; says what was found, or that it is of no use.

  A split without cubes, and a class that a split lacks, count as rejected too.

  Args:
    name: of the config, for messages.
    folder: of the data set.
    counts: cubes by split and number of the class.
    rejected: (scan id, reason, detail).
    classes: their names, none with masks.

  Returns:
    The splits that have cubes, sorted.

  Raises:
    UserError: no cube to train on, or none of a class.
  """
  first = f', first rejected: {": ".join(rejected[0])}' if rejected else ''
  rejected = sorted([*_find_empty(counts, classes), *rejected])
  path = os.path.join(folder, REJECTED_FILE)
  with open(path, 'w', newline='', encoding='utf-8') as file:
    table = csv.writer(file, lineterminator='\n')
    table.writerow(['scan', 'reason', 'detail'])
    table.writerows(rejected)
  parts = []
  for split, of_split in counts.items():
    text = f'{split} {sum(of_split.values())}'
    named = [f'{of_split[n]} {one}' for n, one in enumerate(classes)]
    parts.append(text + (f' ({", ".join(named)})' if named else ''))
  print(f'{name}, cubes: {", ".join(parts) or "none"}')
  if rejected:
    reasons = collections.Counter(reason for _, reason, _ in rejected)
    text = ', '.join(f'{reasons[one]} {one}' for one in sorted(reasons))
    print(f'{name}, rejected: {text}; see {REJECTED_FILE}')
  of_train = counts.get(schema.TRAIN, collections.Counter())
  if not sum(of_train.values()):
    raise errors.UserError(f'{name} has no cube for train{first}')
  for number, one in enumerate(classes):
    if not of_train[number]:
      raise errors.UserError(f'{name} has no {one} for train{first}')
  return sorted(split for split, one in counts.items() if sum(one.values()))


def _find_empty(counts, classes) -> Iterator[tuple[str, str, str]]:
  """Gives ('', reason, detail) of splits that lack a class or all cubes."""
  for split, of_split in counts.items():
    if not sum(of_split.values()):
      yield '', 'empty_split', f'{split} has no cube and is left out'
      continue
    for number, name in enumerate(classes):
      if not of_split[number]:
        yield '', 'empty_class', f'{split} has no {name}'
