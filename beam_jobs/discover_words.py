r"""Discovers visual words in chest CT scans, without writing the cubes.

  python -m beam_jobs.discover_words --scans LUNA16 --output VOCABULARY \
      --runner=FnApiRunner --direct_num_workers=2 \
      --direct_running_mode=multi_processing

Writes vocabulary.json, instances.csv, rejected.csv, descriptors.npz and
counters.json, all of them or none. First a line says what the job, and
`tfds build` after it, will read, write and take; with `--dry_run` that is all.
`--quality` reads the scans once more, measures how alike the cubes of a word
are, and writes quality.json. `--extend vocabulary.json` adds words to those of
an earlier run, which stay as they are. All that is not a flag of this job is
handed to Beam as an option; where no --runner is named, the FnApiRunner runs
the job on this machine.
"""

from collections.abc import Sequence

from absl import flags
from apache_beam.options import pipeline_options

from beam_jobs import common_flags
from beam_jobs import descriptor_settings
from beam_jobs import discovery
from beam_jobs import plan
from beam_jobs import word_plan
from beam_jobs import word_quality
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_lock
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import luna16

_SCANS = flags.DEFINE_string('scans', None, 'Folder of scans.', required=True)
_OUTPUT, _DRY_RUN = common_flags.define_output(
  'Folder to make for the vocabulary.'
)
_STRICT = flags.DEFINE_boolean(
  'strict', False, 'Stop at the first scan that cannot be used.'
)
_EXTEND = flags.DEFINE_string(
  'extend',
  None,
  'A vocabulary.json of the same scans. Words are added to it until there are'
  ' --words; its own and their cubes stay the same. Other settings are taken'
  ' from it, but not the descriptor: give the same again.',
)
_QUALITY = flags.DEFINE_boolean(
  'quality',
  False,
  'Measure how alike the cubes of a word are; reads the scans a second time.',
)
_DESCRIPTORS_ONLY = flags.DEFINE_boolean(
  'descriptors_only', False, 'Write no words, only the descriptors of scans.'
)
common_flags.define_settings()
common_flags.define_descriptor()


def run(
  scans: str,
  output: str | None,
  settings: settings_lib.Settings,
  *,
  strict: bool = False,
  extend: str | None = None,
  described_by: descriptor_settings.DescriptorSettings | None = None,
  descriptors_only: bool = False,
  measure: bool = False,
  dry_run: bool = False,
  options: pipeline_options.PipelineOptions | None = None,
) -> tuple[discovery.Result | None, quality.Quality | None]:
  """Discovers the words of a folder of scans into a new folder.

  Args:
    scans: folder in LUNA16's layout, or with train/ and validation/.
    output: folder to make; it appears only when all is written. A dry run
      takes None for the working directory.
    settings: see `settings.Settings`.
    strict: see `discovery.discover`.
    extend: see `discovery.discover`.
    described_by: see `discovery.discover`.
    descriptors_only: see `discovery.discover`.
    measure: whether to measure the quality of the words.
    dry_run: print the plan and do nothing else.
    options: Beam options.

  Returns:
    What was found, None in a dry run; and its quality where it was measured.

  Raises:
    UserError: the disk cannot hold the output, or as `output_lock.making`,
      `luna16.find_scans` and `discovery.discover` say.
  """
  common_flags.check_output(output)
  if measure and descriptors_only:
    raise errors.UserError(
      '--quality measures words, of which --descriptors_only writes none: give'
      ' one of the two'
    )
  if extend and descriptors_only:
    raise errors.UserError(
      '--extend adds words, of which --descriptors_only writes none: give one'
      ' of the two'
    )
  folder = plan.check_new(output, 'folder')
  scan_files = luna16.find_scans(scans)
  described_by = described_by or descriptor_settings.DescriptorSettings()

  def announce() -> None:
    wanted, in_force, _ = discovery.check(
      scan_files, settings, extend, described_by
    )
    word_plan.plan_discovery(
      wanted,
      in_force,
      folder,
      described_by=described_by,
      descriptors_only=descriptors_only,
      measure=measure,
      options=options,
    ).announce()

  if dry_run:
    announce()
    return None, None
  with output_lock.making(output) as temporary:
    announce()  # what a killed run left is gone, and counts as free
    result = discovery.discover(
      scan_files,
      temporary,
      settings,
      strict=strict,
      extend=extend,
      described_by=described_by,
      descriptors_only=descriptors_only,
      options=options,
    )
    measured = None
    if measure:
      measured = word_quality.cut_and_measure(
        scan_files, result.vocabulary, scans, temporary, options=options
      )
      quality.write_quality(temporary, measured)
  return result, measured


def main(argv: Sequence[str]) -> None:
  result, measured = run(
    _SCANS.value,
    _OUTPUT.value,
    common_flags.settings_from_flags(),
    strict=_STRICT.value,
    extend=_EXTEND.value,
    described_by=common_flags.descriptor_from_flags(),
    descriptors_only=_DESCRIPTORS_ONLY.value,
    measure=_QUALITY.value,
    dry_run=_DRY_RUN.value,
    options=common_flags.beam_options(argv[1:]),
  )
  if result is None:
    return
  lines = result.summary_lines() + (
    measured.summary_lines() if measured else []
  )
  print('\n'.join(lines))
  what = 'descriptors' if _DESCRIPTORS_ONLY.value else 'vocabulary'
  print(f'{what}: {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main, known_only=True)
