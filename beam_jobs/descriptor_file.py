"""Reads and checks descriptors.npz, which discovery writes."""

from collections.abc import Sequence
import io
import math
import sys
import zipfile

import numpy as np

from transvw_tf2 import errors
from transvw_tf2 import file_size

_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_HINT = 'give the descriptors.npz of the same scans'


def read(path: str, scan_ids: Sequence[str]) -> np.ndarray:
  """Reads the descriptors of some scans.

  Args:
    path: descriptors.npz: `scan_id` (N,) text, `descriptors` float (N, D).
    scan_ids: the scans wanted; the file may hold more.

  Returns:
    float32 (len(scan_ids), D), in the order of `scan_ids`.

  Raises:
    UserError: the file cannot be read, is none of descriptors, lacks a scan,
      or has a number that is not finite.
  """
  rows, matrix = _read_all(path)
  missing = [scan_id for scan_id in scan_ids if scan_id not in rows]
  if missing:
    raise errors.UserError(
      f'descriptors {path} lack {len(missing)} of {len(scan_ids)} scans, first'
      f' {min(missing)}: {_HINT}'
    )
  matrix = matrix[[rows[scan_id] for scan_id in scan_ids]].astype(np.float32)
  check_finite(matrix, scan_ids, f'descriptors {path}')
  return matrix


def check(path: str, scan_ids: Sequence[str]) -> None:
  """Checks descriptors before it is known which scans can be used.

  Args:
    path: see `read`.
    scan_ids: of all scans.

  Raises:
    UserError: the file cannot be read, is none of descriptors, or has none of
      the scans.
  """
  rows, _ = _read_all(path)
  if rows.keys().isdisjoint(scan_ids):
    raise errors.UserError(
      f'descriptors {path} are of {len(rows)} scans, first {min(rows)}, and of'
      f' none of the {len(scan_ids)} scans given: {_HINT}'
    )


def _read_all(path: str) -> tuple[dict[str, int], np.ndarray]:
  """Returns the rows of scans, by id, and their descriptors (N, D)."""
  try:
    known, matrix = _read_arrays(path, 'scan_id', 'descriptors')
    _check_text(known)
    names = known.tolist()
  # zipfile and NumPy raise many kinds for a broken file.
  except Exception as error:
    raise errors.UserError(
      f'descriptors {path} cannot be read ({str(error)[:300]}),'
      f' wanted an .npz file with scan_id and descriptors: {_HINT}'
    ) from error
  if (
    known.dtype.kind != 'U'
    or known.ndim != 1
    or matrix.dtype.kind != 'f'
    or matrix.ndim != 2
    or len(matrix) != len(known)
    or not matrix.size
  ):
    raise errors.UserError(
      f'descriptors {path} hold scan_id {known.dtype} {known.shape} and'
      f' descriptors {matrix.dtype} {matrix.shape}, wanted text (N,) and'
      f' float32 (N, D): {_HINT}'
    )
  rows = {scan_id: row for row, scan_id in enumerate(names)}
  if len(rows) < len(known):
    raise errors.UserError(
      f'descriptors {path} name {len(known) - len(rows)} scans twice: {_HINT}'
    )
  return rows, matrix


def _read_arrays(path: str, *names: str) -> list[np.ndarray]:
  """Reads arrays of a .npz file; never unpickles.

  NumPy's own reader takes memory for whatever shape a header claims.
  """
  with zipfile.ZipFile(path) as archive:
    members = [archive.getinfo(f'{name}.npy') for name in names]
    file_size.check(path, sum(one.file_size for one in members))
    return [_read_array(archive.read(one)) for one in members]


def _read_array(content: bytes) -> np.ndarray:
  file = io.BytesIO(content)
  version = np.lib.format.read_magic(file)
  if version not in _HEADERS:
    raise ValueError(f'version {version} of the .npy format')
  shape, _, dtype = _HEADERS[version](file)
  if math.prod(shape) * dtype.itemsize > len(content):
    raise ValueError(f'{dtype} {shape} in {len(content)} bytes')
  file.seek(0)
  return np.lib.format.read_array(file, allow_pickle=False)


def _check_text(array: np.ndarray) -> None:
  """Raises ValueError for text that Python's own cannot hold."""
  if array.dtype.kind == 'U':
    codes = np.frombuffer(
      array.astype(array.dtype.newbyteorder('=')).tobytes(), np.uint32
    )
    if codes.size and codes.max() > sys.maxunicode:
      raise ValueError('there is text that is none')


def check_finite(
  matrix: np.ndarray, scan_ids: Sequence[str], source: str
) -> None:
  """Raises UserError where a descriptor has a number that is not finite.

  Args:
    matrix: float32 (N, D).
    scan_ids: of its rows.
    source: where they come from, for the message.
  """
  wrong = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
  if len(wrong):
    raise errors.UserError(
      f'{source} have NaN or infinite numbers for {len(wrong)} of'
      f' {len(scan_ids)} scans, first {min(scan_ids[row] for row in wrong)}:'
      ' make them anew with a model whose training went well'
    )


def check_model_output(
  matrix: np.ndarray, scan_ids: Sequence[str], model: str
) -> None:
  """Raises UserError where a model cannot tell scans apart.

  Args:
    matrix: float32 (N, D).
    scan_ids: of its rows.
    model: for the message.
  """
  check_finite(matrix, scan_ids, f'descriptors by {model}')
  # Weights that are not finite can end so: ReLU makes 0 of NaN on CPU.
  if len(matrix) > 1 and (matrix == matrix[0]).all():
    raise errors.UserError(
      f'descriptor model {model} describes all {len(matrix)} scans alike: train'
      ' the autoencoder again'
    )
