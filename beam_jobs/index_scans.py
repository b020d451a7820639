r"""Writes a thumbnail of each scan into shards, for the autoencoder.

  python -m beam_jobs.index_scans --scans LUNA16 --output INDEX \
      --runner=FnApiRunner --direct_num_workers=2 \
      --direct_running_mode=multi_processing

Each scan is read once, clipped to [-1000, 1000] HU and resized to 128x128x64
voxels of int16, 2 MiB a scan. INDEX is a TFDS data set with the splits `train`
and `validation`, by patient; `rejected.csv` lists the scans that cannot be
used, and `counters.json` says what was read. First a line says what the job
will read, write and take; with `--dry_run` that is all. All that is not a flag
of this job is handed to Beam as an option.
"""

from collections.abc import Sequence
import dataclasses
import glob
import os
import shutil

from absl import flags
from absl import logging
import apache_beam as beam
from apache_beam.options import pipeline_options
import pyarrow.parquet as pq

from beam_jobs import common_flags
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import thumbnails
from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16

_SCANS = flags.DEFINE_string('scans', None, 'Folder of scans.', required=True)
_OUTPUT, _DRY_RUN = common_flags.define_output('Folder to make for the index.')

_DESCRIPTION = 'Chest CT scans, resized whole to 128x128x64 voxels.'


@dataclasses.dataclass(frozen=True)
class Result:
  """What was written.

  Attributes:
    thumbnails: number by split.
    rejected: sorted (scan, reason, detail) of scans that cannot be used.
  """

  thumbnails: dict[str, int]
  rejected: tuple[tuple[str, str, str], ...]


def run(
  scans: str,
  output: str | None,
  *,
  dry_run: bool = False,
  options: pipeline_options.PipelineOptions | None = None,
) -> Result | None:
  """Writes the thumbnails of a folder of scans into a new folder.

  Args:
    scans: folder in LUNA16's layout, or with train/ and validation/.
    output: folder to make; it appears only when all is written. A dry run
      takes None for the working directory.
    dry_run: print the plan and do nothing else.
    options: Beam options.

  Returns:
    What was written, None in a dry run.

  Raises:
    UserError: there is no usable training scan, the disk cannot hold the index,
      or as `output_lock.making` and `luna16.find_scans` say.
  """
  common_flags.check_output(output)
  folder = plan.check_new(output, 'folder')
  scan_files = luna16.find_scans(scans)
  if dry_run:
    thumbnails.plan_index(scan_files, folder, options).announce()
    return None
  with output_lock.making(output) as temporary:
    # What a killed run left is gone, and counts as free.
    thumbnails.plan_index(scan_files, folder, options).announce()
    rows_folder = os.path.join(temporary, 'rows.tmp')
    os.makedirs(rows_folder)
    requests = thumbnails.plan_shards(scan_files, temporary)
    files = [one for request in requests for one in request.scan_files]
    log = progress.ScanLog(rows_folder)
    with progress.watch_scans(log, 'scans for the index', files):
      pipelines.run(
        beam.Create(requests)
        | thumbnails.WriteShards(os.path.join(rows_folder, 'part'), log),
        options=options,
      )
    result = _describe(requests, _read_rows(rows_folder), temporary)
    shutil.rmtree(rows_folder)
    _write_counters(temporary, result, files)
  return result


def _read_rows(folder: str) -> list[dict]:
  paths = sorted(glob.glob(os.path.join(glob.escape(folder), '*.parquet')))
  return [row for path in paths for row in pq.read_table(path).to_pylist()]


def _describe(requests, rows, folder) -> Result:
  """Writes the files that describe the shards."""
  rejected = tuple(
    sorted(
      (row['scan_id'], row['reason'], row['detail'])
      for row in rows
      if row['reason']
    )
  )
  lengths = {}
  for split in (schema.TRAIN, schema.VALIDATION):
    of_split = [one for one in requests if one.split == split]
    counts = [0] * len(of_split)
    for row in rows:
      if row['split'] == split and not row['reason']:
        counts[row['shard']] += 1
    if sum(counts):
      lengths[split] = counts
      continue
    logging.warning('no scans for the %s split: it is left out', split)
    for one in of_split:
      os.remove(one.output)
  if schema.TRAIN not in lengths:
    raise errors.UserError(
      f'no usable training scan; {len(rows)} scans were read, {len(rejected)}'
      ' rejected'
      + (f', first {": ".join(rejected[0])}' if rejected else '')
      + '; LUNA16 folds 0-4 (subset0 .. subset4) or a train/ folder are needed'
    )
  vocabulary.write_rejected(folder, rejected)
  thumbnails.write_metadata(folder, lengths, _DESCRIPTION)
  return Result(
    thumbnails={split: sum(counts) for split, counts in lengths.items()},
    rejected=rejected,
  )


def _write_counters(folder, result, files) -> None:
  progress.write_counters(
    folder,
    index={
      'scans_read': len(files),
      'bytes_read': plan.count_bytes(files) or None,
      'rejected': progress.count_reasons(
        [reason for _, reason, _ in result.rejected]
      ),
      'thumbnails': result.thumbnails,
    },
  )


def main(argv: Sequence[str]) -> None:
  result = run(
    _SCANS.value,
    _OUTPUT.value,
    dry_run=_DRY_RUN.value,
    options=common_flags.beam_options(argv[1:]),
  )
  if result is None:
    return
  for split, count in result.thumbnails.items():
    print(f'{split}: {count} thumbnails')
  print(f'rejected scans: {len(result.rejected)}')
  print(f'index: {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main, known_only=True)
