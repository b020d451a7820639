"""Flags that several jobs share, defined once."""

from collections.abc import Sequence
import dataclasses

from absl import flags
from apache_beam.options import pipeline_options

from beam_jobs import descriptor_settings
from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.scans import storage

# The flags count as those of the job that asks for them, so that its --help
# shows them.
flags.disclaim_key_flags()

_HELP = {
  'words': 'Visual words wanted; fewer are found with fewer training scans.',
  'instances': 'Training patients per word (K).',
  'validation_instances': 'Validation patients per word.',
  'xy_border': 'Voxels in x and y at the rim of a scan that no cube enters.',
  'z_border': 'Slices at both ends of a scan that no cube enters.',
  'min_distance': 'Least distance between two words, in voxels.',
  'tries': 'Places drawn in a scan before another reference is taken.',
  'max_soft_tissue': 'A place with a larger share of soft tissue is refused.',
  'seed': 'Decides everything that is random.',
  'frame': 'How a place is found in another patient: voxel, the same voxels, as'
  ' published; or lung, the same place in relation to the lungs, with the same'
  ' size in mm.',
}


def define_settings(leave_out: Sequence[str] = ()) -> None:
  """Defines one flag for each field of `settings.Settings`.

  Args:
    leave_out: fields that get no flag, and keep their defaults.
  """
  define = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  for field in dataclasses.fields(settings_lib.Settings):
    if field.name not in leave_out:
      define[field.type](field.name, field.default, _HELP[field.name])


def settings_from_flags(
  values: flags.FlagValues = flags.FLAGS,
) -> settings_lib.Settings:
  """Returns the settings that the flags of `define_settings` say."""
  fields = dataclasses.fields(settings_lib.Settings)
  return settings_lib.Settings(
    **{
      field.name: values[field.name].value
      for field in fields
      if field.name in values
    }
  )


def define_descriptor() -> None:
  """Defines one flag for each field of `DescriptorSettings`."""
  flags.DEFINE_enum(
    'descriptor',
    descriptor_settings.PCA,
    descriptor_settings.DESCRIPTORS,
    'What similar patients are found by; pca needs no training.',
  )
  flags.DEFINE_string(
    'descriptor_model',
    None,
    'Exported autoencoder, for --descriptor autoencoder.',
  )
  flags.DEFINE_string(
    'descriptors', None, 'A descriptors.npz of the same scans to use instead.'
  )


def descriptor_from_flags(
  values: flags.FlagValues = flags.FLAGS,
) -> descriptor_settings.DescriptorSettings:
  """Returns the settings that the flags of `define_descriptor` say."""
  fields = dataclasses.fields(descriptor_settings.DescriptorSettings)
  return descriptor_settings.DescriptorSettings(
    **{field.name: values[field.name].value for field in fields}
  )


def check_output(output: str | None) -> None:
  """Raises UserError unless --output is a path.

  Workers and this process write files there under other names and rename them,
  which no object store does.
  """
  if output is None:
    return
  if storage.is_remote(output):
    raise errors.UserError(
      f'--output {output} is an address, wanted a folder that this machine and'
      ' all workers see; copy it to the store when it is whole'
    )
  output_file.check_no_pattern('--output', output)


def define_output(
  what: str,
) -> tuple[flags.FlagHolder[str | None], flags.FlagHolder[bool]]:
  """Defines --output, and --dry_run, which does not need it.

  Args:
    what: help of --output.
  """
  output = flags.DEFINE_string('output', None, what)
  dry_run = flags.DEFINE_boolean(
    'dry_run',
    False,
    'Print what the job will read, write and take, and write nothing.',
  )
  flags.register_multi_flags_validator(
    [output.name, dry_run.name],
    lambda values: values[output.name] or values[dry_run.name],
    'Flag --output must have a value other than None, but for --dry_run.',
  )
  return output, dry_run


def beam_options(
  arguments: Sequence[str],
) -> pipeline_options.PipelineOptions:
  """Returns Beam options from what is left of a command line.

  Raises:
    UserError: an argument is neither a flag of the job nor a Beam option; Beam
      itself would pass over it.
  """
  arguments = [one for one in arguments if one != '--']
  for before, argument in zip(['', *arguments], arguments, strict=False):
    value_of_flag = before.startswith('--') and '=' not in before
    if not argument.startswith('--') and not value_of_flag:
      raise errors.UserError(
        f'unexpected argument {argument}; wanted only flags, such as'
        ' --name=value'
      )
  options = pipeline_options.PipelineOptions(arguments)
  given = options.get_all_options(retain_unknown_options=True)
  known = pipeline_options.PipelineOptions([]).get_all_options()
  if unknown := sorted(set(given) - set(known)):
    raise errors.UserError(
      f'unknown flag --{unknown[0]}: neither a flag of this job nor an option'
      ' of Apache Beam; see --help'
    )
  return options
