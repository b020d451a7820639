"""The folder of embeddings that `embed_scans` writes and tools read.

  settings.json       the model and the grid of all its scans
  places/ID.parquet   a row per cube of the scan ID, see `place_schema`
  scans/ID.parquet    one row: where the scan lies, and its mean embedding
  rejected.csv        scans that could not be used, of the last run

A file takes its name only when it is whole, and that of `scans` comes last: a
scan that has both is finished.
"""

from collections.abc import Sequence
import dataclasses
import glob
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transvw_tf2 import errors
from transvw_tf2 import output_file
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.serving import embed

SETTINGS_FILE = 'settings.json'
PLACES_FOLDER = 'places'
SCANS_FOLDER = 'scans'
# Of folders that a run removes at its end.
WORK_PREFIX = '.work-'

_SUFFIX = '.parquet'
_VOXEL = ('x', 'y', 'z')
_WORLD = ('world_x', 'world_y', 'world_z')

# A row per cube.
PLACE_SCHEMA = pa.schema(
  [
    ('scan_id', pa.string()),
    *((name, pa.int32()) for name in _VOXEL),  # lower corner, voxels
    *((name, pa.float64()) for name in _WORLD),  # middle, mm (LPS)
    ('embedding', pa.list_(pa.float32())),
  ]
)

# A row per scan.
SCAN_SCHEMA = pa.schema(
  [
    ('scan_id', pa.string()),
    ('split', pa.string()),
    ('cubes', pa.int32()),
    ('size', pa.list_(pa.int32())),  # voxels [x, y, z]
    ('spacing', pa.list_(pa.float64())),  # mm [x, y, z]
    ('origin', pa.list_(pa.float64())),  # mm (LPS) of voxel (0, 0, 0)
    ('direction', pa.list_(pa.float64())),  # 3 x 3, row by row
    ('mean', pa.list_(pa.float32())),  # over the cubes
  ]
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all embeddings of a folder have in common.

  Attributes:
    model: fingerprint of the encoder, the same for each copy of its folder.
    cube_shape: voxels of a cube along x, y and z.
    stride: voxels between cubes along x, y and z.
    embedding_size: numbers in an embedding.
  """

  model: str
  cube_shape: tuple[int, int, int]
  stride: tuple[int, int, int]
  embedding_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedScan:
  """The embeddings of a scan.

  Attributes:
    scan_id: of the scan.
    geometry: of the scan.
    places: int32 (N, 3), lower corners of the cubes, voxels [x, y, z].
    middles: float64 (N, 3), world mm (LPS) of the middles of the cubes.
    embeddings: float32 (N, embedding_size).
    mean: float32 (embedding_size,).
  """

  scan_id: str
  geometry: geometry_lib.Geometry
  places: np.ndarray
  middles: np.ndarray
  embeddings: np.ndarray
  mean: np.ndarray


def middle_voxels(places: np.ndarray, cube_shape: Sequence[int]) -> np.ndarray:
  """Returns the middles of cubes, float64 voxels, like corners (..., 3)."""
  return np.asarray(places) + (np.asarray(cube_shape) - 1) / 2


def check_folder(folder: str, settings: Settings) -> None:
  """Raises UserError for a folder of another model or grid, or of others."""
  if os.path.isfile(os.path.join(folder, SETTINGS_FILE)):
    _check_same(folder, read_settings(folder), settings)
  elif os.path.lexists(folder) and (
    not os.path.isdir(folder)
    # But for what a run left that was killed at its very beginning.
    or not all(
      one.startswith(f'{SETTINGS_FILE}.partial-') for one in os.listdir(folder)
    )
  ):
    raise errors.UserError(
      f'--output {folder} exists and is no folder of embeddings (no'
      f' {SETTINGS_FILE} in it); give another folder'
    )


def prepare_folder(folder: str, settings: Settings) -> None:
  """Makes a folder ready for more scans, and clears what a killed run left.

  Raises:
    UserError: as `check_folder`, or it cannot be written.
  """
  check_folder(folder, settings)
  parts = [os.path.join(folder, one) for one in (PLACES_FOLDER, SCANS_FOLDER)]
  try:
    os.makedirs(folder, exist_ok=True)
    for path in (folder, *parts):
      for left in _glob(path, '*.partial-*'):
        os.remove(left)
    for left in _glob(folder, f'{WORK_PREFIX}*'):
      shutil.rmtree(left)
    # First, for by them the folder is known when the run is given again.
    with (
      output_file.replacing(os.path.join(folder, SETTINGS_FILE)) as path,
      open(path, 'w', encoding='utf-8') as file,
    ):
      json.dump(dataclasses.asdict(settings), file, indent=1, sort_keys=True)
      file.write('\n')
    for path in parts:
      os.makedirs(path, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'--output {folder} cannot be written ({error}); give a folder in a'
      ' writable place'
    ) from error


def read_settings(folder: str) -> Settings:
  """Reads what a folder of embeddings is of.

  Raises:
    UserError: it is no such folder.
  """
  path = os.path.join(folder, SETTINGS_FILE)
  try:
    with open(path, encoding='utf-8') as file:
      contents = json.load(file)
    return Settings(
      model=str(contents['model']),
      cube_shape=_sides(contents['cube_shape']),
      stride=_sides(contents['stride']),
      embedding_size=_positive(contents['embedding_size']),
    )
  except (
    *(OSError, KeyError, TypeError, ValueError),
    *(OverflowError, RecursionError),
  ) as error:
    raise errors.UserError(
      f'{path} cannot be read ({error!r}); give the --output of'
      ' beam_jobs.embed_scans'
    ) from error


def _sides(values) -> tuple[int, int, int]:
  x, y, z = map(_positive, values)
  return x, y, z


def _positive(value) -> int:
  number = int(value)
  if not 1 <= number < 2**31:
    raise ValueError(f'{number} is not a size')
  return number


def _check_same(folder: str, known: Settings, wanted: Settings) -> None:
  # The cube and the size of an embedding come with the model.
  for name, what in (
    ('model', 'of the model'),
    ('stride', 'with the stride'),
    ('cube_shape', 'of cubes of'),
    ('embedding_size', 'of length'),
  ):
    one, other = getattr(known, name), getattr(wanted, name)
    if one != other:
      raise errors.UserError(
        f'--output {folder} holds embeddings {what} {_text(one)}, not'
        f' {_text(other)}; give another --output, or the same --{name}'
      )


def _text(value) -> str:
  if isinstance(value, tuple):
    return ','.join(map(str, value))
  return str(value)


def is_finished(folder: str, scan_id: str) -> bool:
  """Tells whether a scan needs no more work."""
  return all(map(os.path.exists, _paths(folder, scan_id)))


def write_scan(
  folder: str,
  scan_file: luna16.ScanFile,
  geometry: geometry_lib.Geometry,
  embedding: embed.ScanEmbedding,
  cube_shape: Sequence[int],
) -> None:
  """Writes the two files of a scan.

  Args:
    folder: from `prepare_folder`.
    scan_file: which scan.
    geometry: of the scan.
    embedding: of the scan.
    cube_shape: voxels of a cube along x, y and z.

  Raises:
    UserError: they cannot be written.
  """
  middles = geometry.voxel_to_world(middle_voxels(embedding.places, cube_shape))
  places_path, scan_path = _paths(folder, scan_file.scan_id)
  columns = [
    pa.array([scan_file.scan_id] * len(middles)),
    *(pa.array(one) for one in embedding.places.T),
    *(pa.array(one) for one in middles.T),
    _to_lists(embedding.embeddings),
  ]
  _write(pa.table(columns, schema=PLACE_SCHEMA), places_path)
  row = {
    'scan_id': scan_file.scan_id,
    'split': scan_file.split,
    'cubes': len(middles),
    **dataclasses.asdict(geometry),
    'mean': embedding.mean,
  }
  _write(pa.Table.from_pylist([row], schema=SCAN_SCHEMA), scan_path)


def bytes_of(cubes: int, scans: int, embedding_size: int) -> int:
  """Returns the most that the files of so many cubes and scans take."""
  numbers = cubes * embedding_size
  # Parquet begins with a dictionary of the numbers of a file, which is of no
  # use where they hardly repeat, and gives it up at 1 MiB.
  in_dictionary = min(numbers, scans * (300 << 10))
  return (
    4 * numbers
    + 5 * in_dictionary // 2
    + 64 * cubes
    + scans * (8 * embedding_size + (20 << 10))
  )


def list_scans(folder: str) -> list[str]:
  """Returns the sorted ids of the scans that are finished.

  Raises:
    UserError: there are none.
  """
  names = _glob(os.path.join(folder, SCANS_FOLDER), f'*{_SUFFIX}')
  found = [os.path.basename(one).removesuffix(_SUFFIX) for one in names]
  found = sorted(one for one in found if is_finished(folder, one))
  if not found:
    raise errors.UserError(
      f'no embeddings in {folder}; give the --output of beam_jobs.embed_scans'
    )
  return found


def count_places(folder: str, scan_id: str) -> int:
  """Returns the number of cubes of a scan that is finished.

  Raises:
    UserError: its file is damaged.
  """
  _, path = _paths(folder, scan_id)
  return _read_row(path)['cubes']


def find_paths(scans: str, scan_ids: Sequence[str]) -> dict[str, str]:
  """Finds the scans that were embedded; returns their paths by id.

  Args:
    scans: folder in LUNA16's layout, or with train/ and validation/.
    scan_ids: the scans wanted.

  Raises:
    UserError: one is missing.
  """
  paths = {one.scan_id: one.path for one in luna16.find_scans(scans)}
  if missing := sorted(set(scan_ids) - set(paths)):
    raise errors.UserError(
      f'--scans {scans} lacks {len(missing)} scans of the embeddings, first'
      f' {missing[0]}; give the folder that was embedded'
    )
  return {scan_id: paths[scan_id] for scan_id in scan_ids}


def read_scan(folder: str, scan_id: str) -> EmbeddedScan:
  """Reads the embeddings of a scan.

  Raises:
    UserError: the scan is not there, or its files are damaged.
  """
  if not is_finished(folder, scan_id):
    raise errors.UserError(
      f'no embeddings of scan {scan_id!r} in {folder}; there are'
      f' {len(list_scans(folder))} scans, first {list_scans(folder)[0]}'
    )
  places_path, scan_path = _paths(folder, scan_id)
  places = _read(places_path, PLACE_SCHEMA)
  row = _read_row(scan_path)
  embeddings = places['embedding'].combine_chunks()
  mean = np.array(row['mean'], np.float32)
  lengths = embeddings.value_lengths().to_numpy(zero_copy_only=False)
  if len(places) != row['cubes'] or np.any(lengths != len(mean)):
    raise _damaged(
      places_path,
      f'it has not {row["cubes"]} embeddings of {len(mean)} numbers',
    )
  return EmbeddedScan(
    scan_id=scan_id,
    geometry=geometry_lib.Geometry(
      **{
        field.name: tuple(row[field.name])
        for field in dataclasses.fields(geometry_lib.Geometry)
      }
    ),
    places=_stack(places, _VOXEL),
    middles=_stack(places, _WORLD),
    embeddings=embeddings.flatten().to_numpy().reshape(-1, len(mean)),
    mean=mean,
  )


def _glob(folder: str, pattern: str) -> list[str]:
  return glob.glob(os.path.join(glob.escape(folder), pattern))


def _paths(folder: str, scan_id: str) -> tuple[str, str]:
  return tuple(
    os.path.join(folder, name, f'{scan_id}{_SUFFIX}')
    for name in (PLACES_FOLDER, SCANS_FOLDER)
  )


def _to_lists(matrix: np.ndarray) -> pa.ListArray:
  rows, columns = matrix.shape
  return pa.ListArray.from_arrays(
    np.arange(rows + 1, dtype=np.int32) * columns, pa.array(matrix.ravel())
  )


def _write(table: pa.Table, path: str) -> None:
  with output_file.replacing(path) as partial:
    pq.write_table(table, partial)


def _read_row(path: str) -> dict:
  """Reads the row of a scan, of which all is there."""
  table = _read(path, SCAN_SCHEMA)
  rows = table.to_pylist()
  lengths = {'size': 3, 'spacing': 3, 'origin': 3, 'direction': 9}
  if len(rows) != 1 or any(
    len(rows[0][name]) != length for name, length in lengths.items()
  ):
    raise _damaged(path, 'it does not hold one row with a geometry')
  return rows[0]


def _read(path: str, schema: pa.Schema) -> pa.Table:
  try:
    # Not as a data set, which would take the path for a partition.
    table = pq.ParquetFile(path).read(schema.names).cast(schema)
  except (OSError, ValueError, KeyError, pa.ArrowException) as error:
    raise _damaged(path, str(error)[:300]) from error
  for column in table.columns:
    values = column.combine_chunks()
    if pa.types.is_list(values.type) and not values.null_count:
      values = values.flatten()
    if values.null_count:
      raise _damaged(path, 'values are missing in it')
  return table


def _damaged(path: str, why: str) -> errors.UserError:
  return errors.UserError(
    f'{path} cannot be read ({why}); remove it and run beam_jobs.embed_scans'
    ' again'
  )


def _stack(table: pa.Table, names: Sequence[str]) -> np.ndarray:
  return np.stack([table[name].to_numpy() for name in names], axis=1)
