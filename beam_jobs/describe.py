"""Describes scans by the encoder of an autoencoder, with Beam's RunInference.

A descriptor is the global average pool of the encoder's last features (TransVW,
section III-A).
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import glob
import os
import time

import apache_beam as beam
from apache_beam.ml.inference import base
from apache_beam.options import pipeline_options
from apache_beam.runners import runner as beam_runner
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_datasets as tfds

from beam_jobs import amounts
from beam_jobs import descriptor_file
from beam_jobs import pipelines
from beam_jobs import plan
from beam_jobs import progress
from transvw_tf2 import errors
from transvw_tf2.scans import storage
from transvw_tf2.scans import thumbnail
from transvw_tf2.serving import encoders
from transvw_tf2.serving import signatures

# Each thumbnail takes half a GB of memory with 32 base filters, and larger
# batches gain less than a tenth on CPU. Results do not depend on it.
BATCH_SIZE = 2

_ROW_SCHEMA = pa.schema([('scan_id', pa.string()), ('descriptor', pa.binary())])


class EncoderHandler(base.ModelHandler[np.ndarray, np.ndarray, object]):
  """Runs an exported encoder on thumbnails, int16 [x, y, z] HU.

  Beam loads the model once for each process. Beam's own handler for TensorFlow
  takes Keras files only.
  """

  def __init__(self, model: str, batch_size: int = BATCH_SIZE):
    """Initialises the handler.

    Args:
      model: folder that `transvw_tf2.export` wrote for an autoencoder.
      batch_size: thumbnails per call of the encoder.
    """
    super().__init__(min_batch_size=batch_size, max_batch_size=batch_size)
    self._model = storage.absolute(model)

  def load_model(self) -> encoders.Encoder:
    return encoders.load(self._model, signatures.THUMBNAILS)

  def run_inference(
    self,
    batch: Sequence[np.ndarray],
    model: encoders.Encoder,
    inference_args=None,
  ) -> Iterable[np.ndarray]:
    del inference_args
    pipelines.count('scans_described', len(batch))
    return list(model.embed(np.stack(batch)))

  def get_num_bytes(self, batch: Sequence[np.ndarray]) -> int:
    # Beam would pickle the batch to count them.
    return sum(one.nbytes for one in batch)

  def get_metrics_namespace(self) -> str:
    return pipelines.NAMESPACE + '_inference'


class DescribeThumbnails(beam.PTransform):
  """Maps (key, int16 [x, y, z] HU) to (key, float32 (D,))."""

  def __init__(self, model: str, batch_size: int = BATCH_SIZE):
    super().__init__()
    self._handler = EncoderHandler(model, batch_size)

  def expand(self, thumbnails):
    return thumbnails | 'RunEncoder' >> base.RunInference(
      base.KeyedModelHandler(self._handler)
    )


class DescribeRows(beam.PTransform):
  """Gives rows of scans a descriptor in place of their thumbnail.

  Takes dicts whose `thumbnail` holds the bytes of an int16 thumbnail in C
  order, or nothing for a rejected scan. Gives the same dicts with an empty
  `thumbnail` and `descriptor`, the bytes of float32 (D,), or nothing.
  """

  def __init__(self, model: str, batch_size: int = BATCH_SIZE):
    super().__init__()
    self._model = model
    self._batch_size = batch_size

  def expand(self, rows):
    usable = rows | 'DropRejected' >> beam.Filter(lambda row: row['thumbnail'])
    rejected = (
      rows
      | 'TakeRejected' >> beam.Filter(lambda row: not row['thumbnail'])
      | 'LeaveDescriptor' >> beam.Map(_with_descriptor, np.zeros(0, '<f4'))
    )
    described = (
      usable
      | 'TakeThumbnail' >> beam.Map(_split_row)
      | 'Describe' >> DescribeThumbnails(self._model, self._batch_size)
      | 'AddDescriptor' >> beam.MapTuple(_with_descriptor)
    )
    return (described, rejected) | 'JoinRejected' >> beam.Flatten()


def _split_row(row):
  hu = np.frombuffer(row['thumbnail'], '<i2').reshape(thumbnail.SHAPE)
  return row | {'thumbnail': b''}, hu


def _with_descriptor(row, descriptor):
  return row | {
    'thumbnail': b'',
    'descriptor': descriptor.astype('<f4').tobytes(),
  }


def check_model(model: str, shape: Sequence[int] = thumbnail.SHAPE) -> None:
  """Raises UserError unless a model describes thumbnails of some shape.

  Asked before a pipeline is run: what a worker raises reaches the user as text
  that differs from engine to engine.
  """
  found = encoders.load(model, signatures.THUMBNAILS).shape
  if found != tuple(shape):
    raise errors.UserError(
      f'descriptor model {model} takes thumbnails of {_by(found)} voxels,'
      f' wanted {_by(shape)}: train the autoencoder on what'
      ' beam_jobs.index_scans writes'
    )


def plan_index(
  index: str,
  model: str,
  folder: str,
  *,
  batch_size: int = BATCH_SIZE,
  options: pipeline_options.PipelineOptions | None = None,
) -> plan.Plan:
  """Plans `describe_index`; the probe describes a batch of air.

  Args:
    index: see `describe_index`.
    model: see `describe_index`.
    folder: of the output.
    batch_size: see `describe_index`.
    options: Beam options.

  Raises:
    UserError: the model does not fit.
  """
  info = tfds.builder_from_directory(index).info
  check_model(model, info.features['thumbnail'].shape)
  scans = info.splits.total_num_examples
  encoder = encoders.load(model, signatures.THUMBNAILS)
  batch = np.full((min(batch_size, scans), *encoder.shape), -1000, np.int16)
  encoder.embed(batch)  # the first call is slow
  start = time.monotonic()
  encoder.embed(batch)
  seconds = (time.monotonic() - start) / len(batch) * scans
  return plan.make(
    reads=f'{scans} thumbnails, {amounts.size(info.dataset_size)} to read',
    makes=f'{scans} descriptors of {encoder.embedding_size} numbers',
    # The encoder takes all cores, however many workers there are.
    seconds=0.0,
    seconds_alone=seconds,
    # As rows, and then as one file.
    needed_bytes=scans * (encoder.embedding_size * 10 + 1024) + (64 << 10),
    folder=folder,
    options=options,
  )


def describe_index(
  index: str,
  model: str,
  folder: str,
  *,
  batch_size: int = BATCH_SIZE,
  runner: beam_runner.PipelineRunner | None = None,
  options: pipeline_options.PipelineOptions | None = None,
) -> tuple[list[str], np.ndarray]:
  """Describes all scans of an index.

  Args:
    index: folder that `index_scans` wrote.
    model: folder that `transvw_tf2.export` wrote for an autoencoder.
    folder: an existing folder for files that are removed again.
    batch_size: thumbnails per call of the encoder.
    runner: see `pipelines.run`.
    options: Beam options.

  Returns:
    Sorted scan ids, and float32 (N, D) in their order.

  Raises:
    UserError: the model does not fit, or gives numbers that are not finite.
  """
  index = storage.absolute(index)
  info = tfds.builder_from_directory(index).info
  check_model(model, info.features['thumbnail'].shape)
  paths = [
    os.fspath(path)
    for split in sorted(info.splits)
    for path in info.splits[split].filepaths
  ]
  prefix = os.path.join(folder, 'descriptors.tmp')
  log = progress.ScanLog(folder)
  scans = info.splits.total_num_examples
  with progress.Watch(log, 'thumbnails', scans, info.dataset_size):
    pipelines.run(
      beam.Create(paths)
      | 'SpreadShards' >> beam.Reshuffle()
      | 'ReadThumbnails' >> beam.FlatMap(_read_thumbnails, index, log)
      | 'Describe' >> DescribeThumbnails(model, batch_size)
      | 'MakeRows'
      >> beam.MapTuple(
        lambda scan_id, descriptor: {
          'scan_id': scan_id,
          'descriptor': descriptor.astype('<f4').tobytes(),
        }
      )
      | 'WriteDescriptors' >> beam.io.WriteToParquet(prefix, _ROW_SCHEMA),
      runner=runner,
      options=options,
    )
  log.remove()
  found = {}
  for path in glob.glob(glob.escape(prefix) + '*'):
    for row in pq.read_table(path).to_pylist():
      found[row['scan_id']] = np.frombuffer(row['descriptor'], '<f4')
    os.remove(path)
  scan_ids = sorted(found)
  matrix = np.stack([found[scan_id] for scan_id in scan_ids])
  descriptor_file.check_model_output(matrix, scan_ids, model)
  return scan_ids, matrix


def _read_thumbnails(
  path: str, index: str, log: progress.ScanLog
) -> Iterator[tuple[str, np.ndarray]]:
  """Gives (scan id, int16 [x, y, z] HU) of a shard."""
  features = tfds.builder_from_directory(index).info.features
  for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
    start = time.monotonic()
    example = features.deserialize_example_np(record)
    scan_id = example['scan_id'].decode()
    yield scan_id, example['thumbnail']
    # What comes after is done before the generator goes on.
    seconds = round(time.monotonic() - start, 3)
    log.add(progress.Entry(scan_id, read_bytes=len(record), seconds=seconds))


def _by(sides) -> str:
  return ' x '.join(str(side) for side in sides)
