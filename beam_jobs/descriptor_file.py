"""Reads and checks descriptors.npz, which discovery writes."""

from collections.abc import Sequence
import zipfile

import numpy as np

from transvw_tf2 import errors

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
  try:
    with np.load(path, allow_pickle=False) as file:
      known = file['scan_id']
      matrix = file['descriptors']
  except (
    AttributeError,  # a .npy file
    EOFError,
    KeyError,
    OSError,
    TypeError,
    ValueError,  # pickled objects
    zipfile.BadZipFile,
  ) as error:
    raise errors.UserError(
      f'descriptors {path} cannot be read ({" ".join(str(error).split())}),'
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
  rows = {scan_id: row for row, scan_id in enumerate(known.tolist())}
  if len(rows) < len(known):
    raise errors.UserError(
      f'descriptors {path} name {len(known) - len(rows)} scans twice: {_HINT}'
    )
  missing = [scan_id for scan_id in scan_ids if scan_id not in rows]
  if missing:
    raise errors.UserError(
      f'descriptors {path} lack {len(missing)} of {len(scan_ids)} scans, first'
      f' {min(missing)}: {_HINT}'
    )
  matrix = matrix[[rows[scan_id] for scan_id in scan_ids]].astype(np.float32)
  check_finite(matrix, scan_ids, f'descriptors {path}')
  return matrix


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
