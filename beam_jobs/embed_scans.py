r"""Embeds a folder of scans with an exported encoder, into Parquet.

  python -m beam_jobs.embed_scans --scans LUNA16 --model ENCODER \
      --output EMBEDDINGS --runner=FnApiRunner --direct_num_workers=2 \
      --direct_running_mode=multi_processing

ENCODER is what `transvw_tf2.export` wrote for a run of pre-training. EMBEDDINGS
gets two files per scan (`embedding_files` describes them), of all scans, held
out or not, rejected.csv with a reason for each scan that cannot be used, and
counters.json. First a line says what the job will read, write and take; with
`--dry_run` that is all.
The same command again goes on where it was cut off: a scan whose files are
there is not read again. One run at a time may write to a folder. All that is
not a flag of this job is handed to Beam as an option.
Cost: about 0.2 s a cube on 2 CPU cores, 1 to 2 minutes for 512x512x250 without
overlap; 2 kB of disk a cube. A scan that was replaced is not noticed: remove
its two files to embed it anew.
"""

from collections.abc import Sequence
import dataclasses
import glob
import os
import tempfile
import time

from absl import flags
import apache_beam as beam
from apache_beam.options import pipeline_options
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from beam_jobs import amounts
from beam_jobs import common_flags
from beam_jobs import embedding_files
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import scan_embedder
from beam_jobs import transforms
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage
from transvw_tf2.serving import embed
from transvw_tf2.serving import encoders
from transvw_tf2.serving import signatures

_SCANS = flags.DEFINE_string('scans', None, 'Folder of scans.', required=True)
_MODEL = flags.DEFINE_string(
  'model', None, 'Folder that transvw_tf2.export wrote.', required=True
)
_OUTPUT, _DRY_RUN = common_flags.define_output(
  'Folder for the embeddings, new or to go on with.'
)
_STRIDE = flags.DEFINE_list(
  'stride',
  None,
  'Voxels between cubes along x,y,z such as 32,32,16; smaller than a cube gives'
  ' overlap. Default: the size of a cube (64,64,32).',
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8, 'Cubes per call of the model.', lower_bound=1
)


# Scans whose headers are read to know how many cubes there are; with more, the
# others are taken to be like these.
_LOOKED_AT = 64


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run did.

  Attributes:
    written: number of scans embedded.
    skipped: number of scans that were finished before.
    rejected: sorted (scan, reason, detail) of scans that cannot be used.
    counters: of Beam, by name.
  """

  written: int
  skipped: int
  rejected: tuple[tuple[str, str, str], ...]
  counters: dict[str, int]


def run(
  scans: str,
  model: str,
  output: str | None,
  *,
  stride: Sequence[int] | None = None,
  batch_size: int = 8,
  dry_run: bool = False,
  options: pipeline_options.PipelineOptions | None = None,
) -> Result | None:
  """Embeds the scans of a folder that are not in `output` yet.

  Args:
    scans: folder in LUNA16's layout, or with train/ and validation/.
    model: folder that `transvw_tf2.export` wrote for a Y-Net or U-Net.
    output: folder of embeddings; made where there is none. A dry run takes None
      for a new one in the working directory.
    stride: voxels between cubes along x, y and z; the cube itself by default.
    batch_size: cubes per call of the encoder.
    dry_run: print the plan and do nothing else.
    options: Beam options.

  Returns:
    What was done, None in a dry run.

  Raises:
    UserError: `output` is of another model or stride, cannot be written, is
      being written by another run or lies on too small a disk, the model or the
      stride is wrong, no scan can be used, or as `luna16.find_scans` says.
  """
  common_flags.check_output(output)
  scan_files = luna16.find_scans(scans)
  encoder = encoders.load(model, signatures.CUBES)
  settings = describe_settings(model, encoder, stride)
  if output is not None:
    embedding_files.check_folder(output, settings)
  if left := _find_left(scan_files, output):
    folder = output or os.getcwd()
    _plan(left, encoder, settings, batch_size, folder, options).announce()
  if dry_run:
    if not left:
      print(f'plan: nothing is left to do in {output}')
    return None
  del encoder  # its memory; each worker loads its own
  with output_lock.hold(output):
    return _go_on(
      scans, scan_files, model, output, settings, batch_size, options
    )


def _find_left(scan_files, output) -> list[luna16.ScanFile]:
  """Returns the scans that are not embedded yet."""
  return [
    one
    for one in scan_files
    if output is None or not embedding_files.is_finished(output, one.scan_id)
  ]


def _go_on(
  scans, scan_files, model, output, settings, batch_size, options
) -> Result:
  """Embeds what is left."""
  embedding_files.prepare_folder(output, settings)
  left = _find_left(scan_files, output)
  handler = scan_embedder.ScanEncoderHandler(model, settings.stride, batch_size)
  counters, rejected = {}, ()
  if left:
    counters, rejected = _embed(left, handler, output, settings, options)
  vocabulary.write_rejected(output, rejected)
  if len(rejected) == len(scan_files):
    raise errors.UserError(
      f'none of {len(scan_files)} scans in {scans} can be used, first'
      f' {": ".join(rejected[0])}; see {output}/rejected.csv'
    )
  _write_counters(output, scan_files, rejected)
  return Result(
    written=len(left) - len(rejected),
    skipped=len(scan_files) - len(left),
    rejected=rejected,
    counters=counters,
  )


def describe_settings(
  model: str, encoder: encoders.Encoder, stride: Sequence[int] | None
) -> embedding_files.Settings:
  """Returns the settings of a folder of embeddings.

  Raises:
    UserError: the model cannot be used, or the stride does not fit its cubes.
  """
  # Asked before the pipeline is run: what a worker raises reaches the user as
  # text that differs from engine to engine.
  stride = tuple(stride or encoder.shape)
  embed.cube_places(encoder.shape, encoder.shape, stride)
  try:
    fingerprint = tf.saved_model.experimental.read_fingerprint(model)
  except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
    raise errors.UserError(
      f'model {model!r} has no fingerprint ({" ".join(str(error).split())}):'
      ' export it again'
    ) from error
  return embedding_files.Settings(
    # Of graph and weights; the same when the same network is exported again.
    model=fingerprint.singleprint(),
    cube_shape=encoder.shape,
    stride=stride,
    embedding_size=encoder.embedding_size,
  )


def _plan(
  scan_files, encoder, settings, batch_size, folder, options
) -> plan.Plan:
  """Plans the scans that are left; the probe embeds two batches of air.

  Cubes that overlap then take less than the plan says, for they share work.
  """
  cubes = _estimate_cubes(scan_files, settings)
  needed = embedding_files.bytes_of(
    cubes, len(scan_files), settings.embedding_size
  )
  batch = np.full(
    (min(batch_size, max(cubes, 1)), *settings.cube_shape),
    schema.HU_MIN,
    np.int16,
  )
  encoder.embed(batch)  # the first call is slow
  start = time.monotonic()
  encoder.embed(batch)
  seconds = (time.monotonic() - start) / len(batch) * cubes

  def work(scan_file) -> plan.Reading:
    began = time.monotonic()
    plan.read_scan(scan_file.path, cube_shape=settings.cube_shape)
    return plan.Reading(scan_file, time.monotonic() - began)

  return plan.make(
    reads=plan.reads_text(scan_files),
    makes=f'about {cubes:,} embeddings, {amounts.size(needed)}',
    seconds=plan.scale(plan.probe(scan_files, work), scan_files),
    # The encoder takes all cores, however many workers there are.
    seconds_alone=seconds,
    needed_bytes=needed,
    folder=folder,
    options=options,
  )


def _estimate_cubes(scan_files, settings) -> int:
  """Returns how many cubes there are, from the headers of some scans."""
  found, counted = 0, 0
  looked_at = _LOOKED_AT
  if any(storage.is_remote(one.path) for one in scan_files):
    looked_at = plan.PROBED_SCANS  # each is copied whole
  for one in plan.stable_order(scan_files)[:looked_at]:
    try:
      size = reader.read_geometry(one.path).size
      places = embed.cube_places(size, settings.cube_shape, settings.stride)
    except (reader.ScanError, errors.UserError):
      continue  # the job will say why
    found += 1
    counted += len(places)
  if len(scan_files) <= looked_at:
    return counted
  return round(counted / max(found, 1) * len(scan_files))


def _write_counters(output, scan_files, rejected) -> None:
  """Counts what the folder holds, however many runs it took."""
  finished = embedding_files.list_scans(output)
  progress.write_counters(
    output,
    embeddings={
      'scans_read': len(scan_files),
      'bytes_read': plan.count_bytes(scan_files) or None,
      'rejected': progress.count_reasons([reason for _, reason, _ in rejected]),
      'scans': len(finished),
      'cubes': sum(
        embedding_files.count_places(output, scan_id) for scan_id in finished
      ),
    },
  )


def _embed(scan_files, handler, output, settings, options):
  """Returns Beam's counters and the rejected rows, sorted."""
  # A worker may have another working directory.
  output = os.path.abspath(output)
  prefix = embedding_files.WORK_PREFIX
  with tempfile.TemporaryDirectory(dir=output, prefix=prefix) as folder:
    stop = transforms.StopFile(os.path.join(folder, 'stop.txt'))
    log = progress.ScanLog(folder)
    with progress.watch_scans(log, 'scans for embeddings', scan_files):
      counters = pipelines.run(
        beam.Create(scan_files)
        | scan_embedder.EmbedScans(
          handler,
          output,
          settings.cube_shape,
          os.path.join(folder, 'part'),
          stop,
          log,
        ),
        options=options,
      )
    if line := stop.read():
      raise errors.UserError(line)
    paths = glob.glob(os.path.join(glob.escape(folder), '*.parquet'))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
  names = scan_embedder.REJECTED_SCHEMA.names
  return counters, tuple(
    sorted(tuple(row[name] for name in names) for row in rows)
  )


def main(argv: Sequence[str]) -> None:
  result = run(
    _SCANS.value,
    _MODEL.value,
    _OUTPUT.value,
    stride=None if _STRIDE.value is None else embed.parse_stride(_STRIDE.value),
    batch_size=_BATCH_SIZE.value,
    dry_run=_DRY_RUN.value,
    options=common_flags.beam_options(argv[1:]),
  )
  if result is None:
    return
  print(f'embedded scans: {result.written}')
  print(f'finished before: {result.skipped}')
  print(f'rejected scans: {len(result.rejected)}')
  print(f'embeddings: {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main, known_only=True)
