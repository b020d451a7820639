"""Embeds scans by an exported encoder, with Beam's RunInference.

An element is a whole scan, whose cubes the handler gathers in batches of its
own. With cubes as elements the engine would hold all cubes of a collection
until it could put those of a scan together again; so a scan is read, embedded
and written before the next is read, and a worker holds one at a time.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import time

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.ml.inference import base
import numpy as np
import pyarrow as pa

from beam_jobs import embedding_files
from beam_jobs import pipelines
from beam_jobs import progress
from beam_jobs import transforms
from transvw_tf2 import errors
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import storage
from transvw_tf2.serving import embed
from transvw_tf2.serving import encoders
from transvw_tf2.serving import signatures

_REJECTED = 'rejected'
_NOT_FINITE = 'embedding_not_finite'

# One row per scan that cannot be used.
REJECTED_SCHEMA = pa.schema(
  [(name, pa.string()) for name in ('scan_id', 'reason', 'detail')]
)

# What goes with a scan past the encoder; last, when its reading began.
_Key = tuple[luna16.ScanFile, geometry_lib.Geometry, float]


class ScanEncoderHandler(
  base.ModelHandler[np.ndarray, embed.ScanEmbedding, encoders.Encoder]
):
  """Runs an exported encoder on scans, int16 [x, y, z] HU.

  Beam loads the model once for each process. Beam's own handler for TensorFlow
  takes Keras files only.
  """

  def __init__(self, model: str, stride: Sequence[int], batch_size: int):
    """Initialises the handler.

    Args:
      model: folder that `transvw_tf2.export` wrote for a Y-Net or U-Net.
      stride: voxels between cubes along x, y and z.
      batch_size: cubes per call of the encoder.
    """
    super().__init__()
    self._model = storage.absolute(model)
    self._stride = stride
    self._batch_size = batch_size

  def load_model(self) -> encoders.Encoder:
    return encoders.load(self._model, signatures.CUBES)

  def run_inference(
    self,
    batch: Sequence[np.ndarray],
    model: encoders.Encoder,
    inference_args=None,
  ) -> Iterable[embed.ScanEmbedding]:
    del inference_args
    found = [
      embed.embed_scan(model, hu, self._stride, self._batch_size)
      for hu in batch
    ]
    pipelines.count('cubes_embedded', sum(len(one.places) for one in found))
    return found

  def get_num_bytes(self, batch: Sequence[np.ndarray]) -> int:
    # Beam would pickle the scans to count them.
    return sum(one.nbytes for one in batch)

  def get_metrics_namespace(self) -> str:
    return pipelines.NAMESPACE + '_inference'


class ReadScanFn(beam.DoFn):
  """Gives [(_Key, int16 [x, y, z] HU)], a batch of one.

  Beam's own batches go on only when the next element comes, so that two scans
  would be in memory, one of them unwritten while the next is read. A scan that
  cannot be used gives a row of `REJECTED_SCHEMA` aside.
  """

  def __init__(
    self,
    cube_shape: Sequence[int],
    stop: transforms.StopFile,
    log: progress.ScanLog,
  ):
    self._cube_shape = cube_shape
    self._stop = stop
    self._log = log

  # Without types of results: Beam warns of those that it cannot take in.
  def process(self, scan_file: luna16.ScanFile) -> Iterator:
    if self._stop.read():
      return
    pipelines.count('scans_read')
    start = time.monotonic()
    try:
      scan = reader.read_scan(scan_file.path, cube_shape=self._cube_shape)
    except reader.ScanError as error:
      entry = progress.Entry(scan_file.scan_id, error.reason)
      progress.add_line(self._log, scan_file, entry, start)
      yield _reject(scan_file.scan_id, error.reason, error.detail)
      return
    yield [((scan_file, scan.geometry, start), scan.hu)]


class WriteEmbeddingFn(beam.DoFn):
  """Writes the files of a scan; one with NaN gives a rejected row instead.

  A file that cannot be written stops the job.
  """

  def __init__(
    self,
    folder: str,
    cube_shape: Sequence[int],
    stop: transforms.StopFile,
    log: progress.ScanLog,
  ):
    self._folder = folder
    self._cube_shape = cube_shape
    self._stop = stop
    self._log = log

  def process(self, element: tuple[_Key, embed.ScanEmbedding]) -> Iterator:
    (scan_file, geometry, start), embedding = element
    entry = progress.Entry(scan_file.scan_id, cubes=len(embedding.places))
    finite = np.isfinite(embedding.embeddings).all(axis=1)
    if not finite.all():
      entry.outcome = _NOT_FINITE
      progress.add_line(self._log, scan_file, entry, start)
      yield _reject(
        scan_file.scan_id,
        _NOT_FINITE,
        f'{np.count_nonzero(~finite)} of {len(finite)} embeddings of'
        f' {scan_file.path} hold NaN or infinite numbers',
      )
      return
    try:
      embedding_files.write_scan(
        self._folder, scan_file, geometry, embedding, self._cube_shape
      )
    except errors.UserError as error:
      self._stop.write(str(error))
      return
    pipelines.count('scans_written')
    progress.add_line(self._log, scan_file, entry, start)


def _reject(scan_id, reason, detail) -> pvalue.TaggedOutput:
  pipelines.count(f'scans_rejected_{reason}')
  return pvalue.TaggedOutput(
    _REJECTED, {'scan_id': scan_id, 'reason': reason, 'detail': detail}
  )


class EmbedScans(beam.PTransform):
  """Embeds `luna16.ScanFile`s into a folder.

  Rows of rejected scans go to Parquet files with a prefix.
  """

  def __init__(
    self,
    handler: ScanEncoderHandler,
    folder: str,
    cube_shape: Sequence[int],
    rejected_prefix: str,
    stop: transforms.StopFile,
    log: progress.ScanLog,
  ):
    super().__init__()
    self._handler = handler
    self._folder = folder
    self._cube_shape = tuple(cube_shape)
    self._rejected_prefix = rejected_prefix
    self._stop = stop
    self._log = log

  def expand(self, scan_files):
    handler = base.KeyedModelHandler(self._handler).with_no_batching()
    read = (
      scan_files
      | 'SpreadScans' >> beam.Reshuffle()
      | 'ReadScan'
      >> beam.ParDo(
        ReadScanFn(self._cube_shape, self._stop, self._log)
      ).with_outputs(_REJECTED, main='scans')
    )
    written = (
      read['scans']
      | 'RunEncoder' >> base.RunInference(handler)
      | 'WriteEmbedding'
      >> beam.ParDo(
        WriteEmbeddingFn(self._folder, self._cube_shape, self._stop, self._log)
      ).with_outputs(_REJECTED, main='written')
    )
    return (
      (read[_REJECTED], written[_REJECTED])
      | 'JoinRejected' >> beam.Flatten()
      | 'WriteRejected'
      >> beam.io.WriteToParquet(
        self._rejected_prefix, REJECTED_SCHEMA, file_name_suffix='.parquet'
      )
    )
