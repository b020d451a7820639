r"""TFDS builder: chest CT scans -> visual words -> TFRecord shards.

  cd beam_jobs && tfds build transvw_luna16 --manual_dir LUNA16 --data_dir DATA

or, from anywhere,

  tfds build transvw_luna16 --imports beam_jobs.transvw_luna16 \
      --manual_dir LUNA16 --data_dir DATA

Settings come as JSON: `--config '{"name": "ten", "words": 10}'`. The passes
over the scans run on Beam's FnApiRunner in one process, unless Beam options say
otherwise. Two processes, for example:

  OPTIONS=runner=FnApiRunner,direct_num_workers=2
  OPTIONS=$OPTIONS,direct_running_mode=multi_processing
  tfds build ... --beam_pipeline_options=$OPTIONS

First a line says what the build will read, write and take. TFDS has no dry run:
`discover_words --dry_run` with the same settings says it without a build.
"""

import dataclasses
import os
from typing import ClassVar

from absl import logging
import apache_beam as beam
import tensorflow_datasets as tfds

from beam_jobs import builders
from beam_jobs import descriptor_settings
from beam_jobs import discovery
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import record_writer
from beam_jobs import transforms
from beam_jobs import word_plan
from beam_jobs import word_quality
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.discovery import vocabulary as vocabulary_lib
from transvw_tf2.scans import luna16

_SETTINGS = tuple(
  field.name for field in dataclasses.fields(settings_lib.Settings)
)
_DESCRIPTOR = tuple(
  field.name
  for field in dataclasses.fields(descriptor_settings.DescriptorSettings)
)
_WANTED = (
  'subset0 .. subset9 of LUNA16, or train/ and validation/ with your own scans'
)
_WRITERS = ('disk', 'beam')
# Removed when the shards are written.
_CUBES_FOLDER = 'cubes.tmp'


@dataclasses.dataclass
class BuilderConfig(tfds.core.BuilderConfig):
  """Settings of discovery, with the names and defaults of `discover_words`.

  Attributes:
    words: see `settings.Settings`, as all up to `frame`.
    descriptor: see `descriptor_settings.DescriptorSettings`, as the two below.
    vocabulary: a folder that discover_words wrote, to be used instead of
      discovering anew; the settings above are then those it was made with.
    extend: the vocabulary.json of an earlier run over the same scans, to which
      words are added until there are `words`; the old ones stay the same.
    strict: stop at the first scan that cannot be used.
    writer: `disk` shuffles the cubes on the disk of one machine; `beam` lets
      Beam do it, for vocabularies beyond one machine (on one machine it holds
      all cubes in memory). Both write the same records in the same order, but
      where there are several shards, these begin at different records.
  """

  words: int = settings_lib.Settings.words
  instances: int = settings_lib.Settings.instances
  validation_instances: int = settings_lib.Settings.validation_instances
  xy_border: int = settings_lib.Settings.xy_border
  z_border: int = settings_lib.Settings.z_border
  min_distance: float = settings_lib.Settings.min_distance
  tries: int = settings_lib.Settings.tries
  max_soft_tissue: float = settings_lib.Settings.max_soft_tissue
  seed: int = settings_lib.Settings.seed
  frame: str = settings_lib.Settings.frame
  descriptor: str = descriptor_settings.PCA
  descriptor_model: str | None = None
  descriptors: str | None = None
  vocabulary: str | None = None
  extend: str | None = None
  strict: bool = False
  writer: str = 'disk'

  def __new__(cls, *args, **fields):
    """Checks the names of the fields, which come from the JSON of --config."""
    builders.check_config_fields(
      cls, args, fields, '{"name": "ten", "words": 10}'
    )
    return super().__new__(cls)

  def __post_init__(self):
    self.settings()
    self.described_by()
    for name in ('vocabulary', 'extend'):
      if not isinstance(getattr(self, name), str | None):
        raise errors.UserError(
          f'config field {name} must be a path, got {getattr(self, name)!r}'
        )
    if self.vocabulary and self.extend:
      raise errors.UserError(
        'config fields vocabulary and extend exclude each other: the first'
        ' takes words as they are, the second adds to them'
      )
    other = self.described_by() != descriptor_settings.DescriptorSettings()
    if self.vocabulary and other:
      raise errors.UserError(
        'config field vocabulary takes patients as they were found: leave out'
        f' {", ".join(_DESCRIPTOR)}'
      )
    builders.check_boolean(self, 'strict')
    if self.writer not in _WRITERS:
      raise errors.UserError(
        f'config field writer must be one of {", ".join(_WRITERS)}, got'
        f' {self.writer!r}'
      )

  def settings(self) -> settings_lib.Settings:
    """Returns the settings of discovery; a value out of range raises."""
    return settings_lib.Settings(
      **{name: getattr(self, name) for name in _SETTINGS}
    )

  def described_by(self) -> descriptor_settings.DescriptorSettings:
    """Returns how scans are described; what does not fit together raises."""
    return descriptor_settings.DescriptorSettings(
      **{name: getattr(self, name) for name in _DESCRIPTOR}
    )


class Builder(builders.OneBuild, tfds.core.GeneratorBasedBuilder):
  """Discovers visual words in chest CT scans and writes their cubes."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'Initial release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  --manual_dir is a folder of chest CT scans in one of two layouts:

  LUNA16: subset0/ .. subset9/ with {SeriesInstanceUID}.mhd and .raw, unpacked
  from the ten archives subset0.zip .. subset9.zip that
  https://luna16.grand-challenge.org/Download/ links to. Subsets 0-4 become the
  training split, 5-6 validation, 7-9 are left for target tasks.

  Your own scans: train/ and validation/, one patient a file (.mhd with its
  .raw, .mha, .nii, .nii.gz, .nrrd, .npy) or a folder of one DICOM series.
  """
  builder_config_cls = BuilderConfig
  BUILDER_CONFIGS: ClassVar = [
    BuilderConfig(
      name='default', description='The settings of the published study.'
    )
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=builders.make_features(),
      supervised_keys=('cube', 'word'),
      homepage='https://github.com/fhaghighi/TransVW',
    )

  def _example_writer(self):
    return record_writer.DeterministicWriter(self.info.file_format)

  def _split_generators(self, dl_manager, pipeline):
    pipelines.prefer_local_engine(pipeline)
    engine = {'runner': pipeline.runner, 'options': pipeline.options}
    builders.local_folder(self.data_path)
    scans = builders.find_manual_dir(dl_manager, _WANTED)
    scan_files = luna16.find_scans(scans)
    folder = os.fspath(self.data_path)
    self._make_plan(scan_files, pipeline.options).announce()
    words = self._find_words(scan_files, engine)
    # Now it is known how many cubes there are.
    counts = word_plan.count_cubes(scan_files, words)
    plan.check_space(counts.needed_bytes(self.builder_config.writer), folder)
    self.info.features['word'].names = [
      f'{word.word:04d}' for word in words.words
    ]
    # A file of cubes per scan, not a shuffle in Beam: on one machine that
    # would hold all cubes in memory.
    requests = discovery.cut_cubes(
      scan_files,
      words.instances,
      os.path.join(folder, _CUBES_FOLDER),
      frame=words.settings.frame,
      **engine,
    )
    progress.write_counters(folder, cubes=discovery.cube_counters(requests))
    measured = word_quality.measure(requests, words, scans)
    quality.write_quality(folder, measured)
    print('\n'.join(measured.summary_lines()))
    generators = {}
    for split in (schema.TRAIN, schema.VALIDATION):
      of_split = [one for one in requests if one.instances[0].split == split]
      if of_split:
        generators[split] = self._generate_examples(of_split)
      else:
        logging.warning('no scans for the %s split: it is left out', split)
    return generators

  def _make_plan(self, scan_files, options) -> plan.Plan:
    """Plans the build; what is wrong without reading a scan raises."""
    config = self.builder_config
    described_by = config.described_by()
    if config.vocabulary:
      words = vocabulary_lib.read_vocabulary(config.vocabulary)
      settings_lib.check_same(
        config.settings(), words.settings, config.vocabulary
      )
      discovery.check_scans(scan_files, words)
    else:
      scan_files, words, _ = discovery.check(
        scan_files, config.settings(), config.extend, described_by
      )
    return word_plan.plan_build(
      scan_files,
      words,
      os.fspath(self.data_path.parent),
      described_by=described_by,
      writer=config.writer,
      options=options,
    )

  def _find_words(self, scan_files, engine) -> vocabulary_lib.Vocabulary:
    """Discovers the words, or takes those of the config's vocabulary.

    Their files go to the folder of the data, and are renamed with it.
    """
    config = self.builder_config
    folder = os.fspath(self.data_path)
    if config.vocabulary:
      found = discovery.copy_vocabulary(config.vocabulary, folder)
      lines = discovery.summary_lines(found)
    else:
      result = discovery.discover(
        scan_files,
        folder,
        config.settings(),
        strict=config.strict,
        extend=config.extend,
        described_by=config.described_by(),
        **engine,
      )
      found, lines = result.vocabulary, result.summary_lines()
    print('\n'.join(lines))
    return found

  def _generate_examples(self, requests):
    """Gives (key, example) of all cubes of a split."""
    if self.builder_config.writer == 'disk':
      return transforms.read_and_remove_examples(requests)
    return (
      'CreateRequests' >> beam.Create(requests)
      | 'SpreadCubes' >> beam.Reshuffle()
      | 'ReadExamples' >> beam.FlatMap(transforms.read_examples)
    )

  def _process_pipeline_result(self, pipeline_result):
    """Cleans up: TFDS calls this when both splits are written."""
    del pipeline_result
    (self.data_path / _CUBES_FOLDER).rmtree()
