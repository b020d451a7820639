r"""Describes scans by a trained autoencoder, without reading them again.

  python -m beam_jobs.describe_scans --data INDEX --descriptor_model MODEL \
      --output descriptors.npz --runner=FnApiRunner --direct_num_workers=2 \
      --direct_running_mode=multi_processing

INDEX is what `index_scans` wrote, MODEL what `transvw_tf2.export` wrote for a
run of gin/runs/autoencoder.gin. First a line says what the job will read, write
and take; with `--dry_run` that is all. All that is not a flag of this job is
handed to Beam as an option.
"""

from collections.abc import Sequence

from absl import flags
from apache_beam.options import pipeline_options

from beam_jobs import common_flags
from beam_jobs import describe
from beam_jobs import plan
from transvw_tf2 import mains
from transvw_tf2 import output_lock
from transvw_tf2.discovery import vocabulary
from transvw_tf2.training import built_data

_DATA = flags.DEFINE_string(
  'data', None, 'Index that index_scans wrote.', required=True
)
_MODEL = flags.DEFINE_string(
  'descriptor_model', None, 'Exported autoencoder.', required=True
)
_OUTPUT, _DRY_RUN = common_flags.define_output(
  'File to write, descriptors.npz.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', describe.BATCH_SIZE, 'Scans at a time.', lower_bound=1
)


def run(
  data: str,
  model: str,
  output: str | None,
  *,
  batch_size: int = describe.BATCH_SIZE,
  dry_run: bool = False,
  options: pipeline_options.PipelineOptions | None = None,
) -> int | None:
  """Writes the descriptors of all scans of an index.

  Args:
    data: folder that `index_scans` wrote.
    model: folder that `transvw_tf2.export` wrote for an autoencoder.
    output: file to write; it appears only when all is written. A dry run takes
      None for the working directory.
    batch_size: thumbnails per call of the encoder.
    dry_run: print the plan and do nothing else.
    options: Beam options.

  Returns:
    The number of scans, None in a dry run.

  Raises:
    UserError: as `output_lock.making`, the disk cannot hold the output, or the
      index or the model is wrong.
  """
  common_flags.check_output(output)
  folder = plan.check_new(output, 'file')
  index = built_data.open_data(data, built_data.THUMBNAILS).data_dir
  describe.plan_index(
    index, model, folder, batch_size=batch_size, options=options
  ).announce()
  if dry_run:
    return None
  file = vocabulary.DESCRIPTORS_FILE
  with output_lock.making(output, file) as temporary:
    scan_ids, matrix = describe.describe_index(
      index, model, temporary, batch_size=batch_size, options=options
    )
    vocabulary.write_descriptors(temporary, scan_ids, matrix)
  return len(scan_ids)


def main(argv: Sequence[str]) -> None:
  count = run(
    _DATA.value,
    _MODEL.value,
    _OUTPUT.value,
    batch_size=_BATCH_SIZE.value,
    dry_run=_DRY_RUN.value,
    options=common_flags.beam_options(argv[1:]),
  )
  if count is None:
    return
  print(f'descriptors of {count} scans: {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main, known_only=True)
