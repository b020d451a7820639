"""Embeds a whole scan: cubes on a grid through an exported encoder."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import os

from absl import logging
import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2.scans import reader
from transvw_tf2.serving import encoders
from transvw_tf2.serving import overlap
from transvw_tf2.serving import signatures


@dataclasses.dataclass(frozen=True)
class ScanEmbedding:
  """Embeddings of the cubes of one scan.

  Attributes:
    places: int32 (N, 3), lower corners of the cubes in voxels [x, y, z].
    embeddings: float32 (N, embedding_size).
    mean: float32 (embedding_size,), over the cubes.
  """

  places: np.ndarray
  embeddings: np.ndarray
  mean: np.ndarray


def cube_places(
  size: Sequence[int],
  cube_shape: Sequence[int],
  stride: Sequence[int],
  most: int | None = None,
) -> np.ndarray:
  """Returns corners of cubes that together cover all voxels of a scan.

  Along each axis a corner every `stride` voxels; the last cube lies flush with
  the border, so it may overlap the one before by more.

  Args:
    size: voxels of the scan along x, y and z.
    cube_shape: voxels of a cube along x, y and z.
    stride: voxels between corners, 1 to the side of the cube.
    most: cubes at most; None for any number.

  Returns:
    int32 (N, 3), ordered by x, then y, then z.

  Raises:
    errors.UserError: the scan is smaller than a cube, the stride would leave
      gaps, or there would be more cubes than `most`.
  """
  if any(voxels < side for voxels, side in zip(size, cube_shape, strict=True)):
    raise errors.UserError(
      f'scan has {_by(size)} voxels, wanted at least the cube '
      f'{_by(cube_shape)}: pad or resample the scan'
    )
  stride_fits = len(stride) == 3 and all(
    1 <= step <= side for step, side in zip(stride, cube_shape, strict=True)
  )
  if not stride_fits:
    raise errors.UserError(
      f'stride is {_comma(stride)}, wanted three integers from 1,1,1 to '
      f'{_comma(cube_shape)}: a larger one would leave gaps'
    )
  corners = []
  for voxels, side, step in zip(size, cube_shape, stride, strict=True):
    last = voxels - side
    corners.append(np.r_[np.arange(0, last, step), last])
  count = math.prod(map(len, corners))
  if most is not None and count > most:
    raise errors.UserError(
      f'stride {_comma(stride)} cuts the scan of {_by(size)} voxels into'
      f' {count} cubes, wanted at most {most}: give a larger one'
    )
  grid = np.meshgrid(*corners, indexing='ij')
  return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int32)


def cut_batches(
  hu: np.ndarray,
  places: np.ndarray,
  cube_shape: Sequence[int],
  batch_size: int,
) -> Iterator[np.ndarray]:
  """Yields the cubes at `places`, int16 (B, X, Y, Z), a batch at a time."""
  for start in range(0, len(places), batch_size):
    cubes = []
    for place in places[start : start + batch_size]:
      box = tuple(
        slice(corner, corner + side)
        for corner, side in zip(place, cube_shape, strict=True)
      )
      cubes.append(hu[box])
    yield np.stack(cubes)


def embed_scan(
  encoder: encoders.Encoder,
  hu: np.ndarray,
  stride: Sequence[int] | None = None,
  batch_size: int = 8,
) -> ScanEmbedding:
  """Embeds all of a scan.

  Cubes that overlap share what they have in common, see models/sliding_windows.

  Args:
    encoder: from encoders.load, of cubes.
    hu: int16 [x, y, z], HU.
    stride: voxels between cubes along x, y and z; the cube itself by default.
    batch_size: cubes that the encoder computes at once.

  Returns:
    Embeddings of the cubes, their places and their mean.

  Raises:
    errors.UserError: the scan is smaller than a cube, or stride or batch size
      make no sense.
  """
  if batch_size < 1:
    raise errors.UserError(
      f'batch_size is {batch_size}, wanted at least 1: change --batch_size'
    )
  places = cube_places(hu.shape, encoder.shape, stride or encoder.shape)
  corners = [np.unique(along) for along in places.T]
  boxes = overlap.cut_boxes(corners, encoder.shape, batch_size)
  if encoder.has_windows and overlap.saves_work(boxes, corners, encoder.shape):
    parts = _embed_boxes(encoder, hu, corners, boxes)
  else:
    parts = _embed_batches(encoder, hu, places, batch_size)
  embeddings = np.empty((len(places), encoder.embedding_size), np.float32)
  done = 0
  for numbers, part in parts:
    embeddings[numbers] = part
    done += len(part)
    logging.log_every_n_seconds(
      logging.INFO, 'embedded %d of %d cubes', 10, done, len(places)
    )
  mean = embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
  return ScanEmbedding(places=places, embeddings=embeddings, mean=mean)


def _embed_batches(encoder, hu, places, batch_size) -> Iterator[tuple]:
  """Yields numbers of cubes and their embeddings."""
  done = 0
  for cubes in cut_batches(hu, places, encoder.shape, batch_size):
    yield slice(done, done + len(cubes)), encoder.embed(cubes)
    done += len(cubes)


def _embed_boxes(encoder, hu, corners, boxes) -> Iterator[tuple]:
  """Yields numbers of cubes and their embeddings, a box at a time."""
  grid = tuple(map(len, corners))
  for box in boxes:
    starts = [one[group] for one, group in zip(corners, box, strict=True)]
    numbers = np.ravel_multi_index(np.ix_(*box), grid).ravel()
    yield numbers, encoder.embed_windows(hu, starts)


def write_npz(path: str, embedding: ScanEmbedding) -> None:
  """Writes `embeddings`, `places` and `mean` to `path`, all or nothing.

  Raises:
    errors.UserError: `path` cannot be written.
  """
  _make_folder(path)
  # A file object, for np.savez appends .npz to a name without it.
  with output_file.replacing(path) as partial, open(partial, 'wb') as file:
    np.savez(
      file,
      embeddings=embedding.embeddings,
      places=embedding.places,
      mean=embedding.mean,
    )


def _make_folder(path: str) -> None:
  """Makes the folder of a file, and checks that the file can be there."""
  folder = os.path.dirname(os.path.abspath(path))
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'output {path!r} cannot be written ({error}): choose another --output'
    ) from error
  output_file.check_place(path)


def parse_stride(values: Sequence[str]) -> tuple[int, ...]:
  """Parses the three numbers of --stride.

  Raises:
    errors.UserError: they are not three integers.
  """
  try:
    stride = tuple(int(value) for value in values)
  except ValueError:
    stride = ()
  if len(stride) != 3:
    raise errors.UserError(
      f'stride is {_comma(values)!r}, wanted three integers such as 64,64,32: '
      'change --stride'
    )
  return stride


def embed_file(
  model: str,
  scan: str,
  output: str,
  stride: Sequence[int] | None = None,
  batch_size: int = 8,
) -> ScanEmbedding:
  """Embeds the scan in a file and writes `output`; see embed_scan.

  Raises:
    errors.UserError: model, stride, batch size or output are wrong.
    reader.ScanError: the scan cannot be read.
  """
  if os.path.isdir(output):
    raise errors.UserError(
      f'output {output!r} is a folder, wanted a file: add a name such as x.npz'
    )
  _make_folder(output)  # before the work of many minutes
  encoder = encoders.load(model, signatures.CUBES)
  hu = reader.read_scan(scan, cube_shape=encoder.shape).hu
  embedding = embed_scan(encoder, hu, stride, batch_size)
  write_npz(output, embedding)
  return embedding


def _by(sides) -> str:
  return ' x '.join(str(side) for side in sides)


def _comma(values) -> str:
  return ','.join(str(value) for value in values)
