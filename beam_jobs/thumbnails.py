"""Thumbnails of all scans as TFRecord shards, which TFDS and training read.

Which scans make up a shard is decided before any is read, and a worker writes a
shard while it reads its scans, one at a time. So each scan is read once,
nothing is held in memory or written twice, and the shards do not depend on the
number of workers.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import os
import time

import apache_beam as beam
from apache_beam.options import pipeline_options
import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
import threadpoolctl

from beam_jobs import amounts
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from beam_jobs import record_writer
from transvw_tf2 import schema
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import thumbnail

# The name of the data set, with which its files begin.
NAME = 'scan_index'
# 2 MiB each: a shard has 16 MiB, and 100 scans keep a dozen workers busy.
_SCANS_IN_SHARD = 8

# A record and its share of the shard's other features; the rows of its scan.
_RECORD_BYTES = math.prod(thumbnail.SHAPE) * 2 + 1024

# One row per scan read: its shard, or the reason for its rejection.
ROW_SCHEMA = pa.schema(
  [
    ('scan_id', pa.string()),
    ('split', pa.string()),
    ('shard', pa.int32()),
    ('reason', pa.string()),  # empty for a usable scan
    ('detail', pa.string()),
  ]
)


def make_features() -> tfds.features.FeaturesDict:
  """Returns the features of the data set."""
  return tfds.features.FeaturesDict(
    {
      # HU in [-1000, 1000], indexed [x, y, z].
      'thumbnail': tfds.features.Tensor(
        shape=thumbnail.SHAPE,
        dtype=np.int16,
        encoding=tfds.features.Encoding.BYTES,
      ),
      'scan_id': tfds.features.Text(),
      # Of the scan itself: voxels, and mm between them, [x, y, z].
      'size': tfds.features.Tensor(shape=(3,), dtype=np.int32),
      'spacing': tfds.features.Tensor(shape=(3,), dtype=np.float32),
    }
  )


@dataclasses.dataclass(frozen=True)
class ShardRequest:
  """A shard to write.

  Attributes:
    split: of all its scans.
    shard: its number within the split.
    scan_files: the scans, in the order in which they are written.
    output: the file to write.
  """

  split: str
  shard: int
  scan_files: tuple[luna16.ScanFile, ...]
  output: str


def plan_shards(
  scan_files: Sequence[luna16.ScanFile], folder: str
) -> list[ShardRequest]:
  """Spreads the scans of training and validation evenly over shards.

  In the order of a stable hash, so that no shard is of one hospital.

  Args:
    scan_files: from `luna16.find_scans`; held-out scans are left out.
    folder: where the shards will be written.
  """
  requests = []
  for split in (schema.TRAIN, schema.VALIDATION):
    of_split = sorted(
      (one for one in scan_files if one.split == split),
      key=lambda one: (schema.stable_hash(one.scan_id), one.scan_id),
    )
    shards = -(-len(of_split) // _SCANS_IN_SHARD)
    for shard in range(shards):
      name = f'{NAME}-{split}.tfrecord-{shard:05d}-of-{shards:05d}'
      part = slice(
        shard * len(of_split) // shards, (shard + 1) * len(of_split) // shards
      )
      requests.append(
        ShardRequest(
          split, shard, tuple(of_split[part]), os.path.join(folder, name)
        )
      )
  return requests


def plan_index(
  scan_files: Sequence[luna16.ScanFile],
  folder: str,
  options: pipeline_options.PipelineOptions | None,
) -> plan.Plan:
  """Plans an index.

  Args:
    scan_files: from `luna16.find_scans`; held-out scans are left out.
    folder: of the output.
    options: Beam options.
  """
  requests = plan_shards(scan_files, folder)
  files = [one for request in requests for one in request.scan_files]

  def work(scan_file) -> plan.Reading:
    start = time.monotonic()
    with threadpoolctl.threadpool_limits(1):
      thumbnail.make_thumbnail(plan.read_scan(scan_file.path).hu)
    return plan.Reading(scan_file, time.monotonic() - start)

  written = len(files) * _RECORD_BYTES
  return plan.make(
    reads=plan.reads_text(files),
    makes=f'at most {len(files)} thumbnails, {amounts.size(written)} in'
    f' {len(requests)} shard{"s" if len(requests) > 1 else ""}',
    seconds=plan.scale(plan.probe(files, work), files),
    seconds_alone=plan.disk_seconds(folder, written),
    options=options,
    needed_bytes=written + plan.BLOCK_BYTES * (len(requests) + 16),
    folder=folder,
  )


class WriteShardFn(beam.DoFn):
  """Reads the scans of a shard, writes it, and gives a row for each scan."""

  def __init__(self, log: progress.ScanLog | None = None):
    self._log = log

  def process(self, request: ShardRequest) -> Iterator[dict]:
    rows = []
    temporary = f'{request.output}.{os.getpid()}'
    writer = record_writer.DeterministicWriter(
      tfds.core.file_adapters.FileFormat.TFRECORD
    )
    # One thread: Beam spreads the shards, and sums must not change with it.
    with threadpoolctl.threadpool_limits(1):
      writer.write(temporary, self._read(request, rows))
    # Not `.incomplete`: a worker that is started anew takes another name.
    os.replace(temporary, request.output)
    yield from rows

  def _read(self, request, rows) -> Iterator[tuple[str, bytes]]:
    """Gives (key, record) of the scans that can be used."""
    features = make_features()
    for scan_file in request.scan_files:
      pipelines.count('scans_read')
      row = {
        'scan_id': scan_file.scan_id,
        'split': request.split,
        'shard': request.shard,
        'reason': '',
        'detail': '',
      }
      try:
        with progress.on_scan(self._log, scan_file):
          scan = reader.read_scan(scan_file.path)
          small = thumbnail.make_thumbnail(scan.hu)
      except reader.ScanError as error:
        pipelines.count(f'scans_rejected_{error.reason}')
        rows.append(row | {'reason': error.reason, 'detail': error.detail})
        continue
      example = {
        'thumbnail': small,
        'scan_id': scan_file.scan_id,
        'size': np.asarray(scan.geometry.size, np.int32),
        'spacing': np.asarray(scan.geometry.spacing, np.float32),
      }
      record = features.serialize_example(example)
      pipelines.count('thumbnails_written')
      rows.append(row)
      yield scan_file.scan_id, record


class WriteShards(beam.PTransform):
  """Writes shards, and the rows of their scans to Parquet with a prefix."""

  def __init__(self, prefix: str, log: progress.ScanLog | None = None):
    super().__init__()
    self._prefix = prefix
    self._log = log

  def expand(self, requests):
    return (
      requests
      | 'SpreadShards' >> beam.Reshuffle()
      | 'WriteShard' >> beam.ParDo(WriteShardFn(self._log))
      | 'WriteRows'
      >> beam.io.WriteToParquet(
        self._prefix, ROW_SCHEMA, file_name_suffix='.parquet'
      )
    )


def write_metadata(
  folder: str, lengths: dict[str, Sequence[int]], description: str
) -> None:
  """Writes what TFDS needs to read the shards of a folder.

  Args:
    folder: holds the shards.
    lengths: thumbnails in each shard, by split.
    description: of the data set.
  """
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=NAME, filetype_suffix='tfrecord'
  )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=make_features(),
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=list(of_split),
        num_bytes=sum(
          os.path.getsize(path)
          for path in template.replace(split=split).sharded_filepaths(
            len(of_split)
          )
        ),
        filename_template=template.replace(split=split),
      )
      for split, of_split in lengths.items()
    ],
    filename_template=template,
    check_data=False,
    description=description,
  )
