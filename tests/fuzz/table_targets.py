"""Folders, tables and arrays: what needs no TensorFlow to be read."""

import functools
import os
from unittest import mock

import numpy as np

from beam_jobs import descriptor_file
from beam_jobs import label_table
from tests.fuzz import files as files_lib
from tests.fuzz import mutations
from tests.fuzz import targets
from tests.scans import scan_files
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import published_log
from transvw_tf2.discovery import quality
from transvw_tf2.discovery import settings
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import geometry as geometry_lib
from transvw_tf2.scans import luna16
from transvw_tf2.scans import reader
from transvw_tf2.scans import released_npy

# So that a case writes kilobytes; the reader goes by the schema.
_SMALL_CUBE = (4, 4, 2)
_SCAN_SIZE = (90, 80, 40)
_UID = '1.3.6.1.4.1.14519.5.2.1.6279.6001.1090020'


def _write_layout(folder, paths=()):
  for path in paths:
    os.makedirs(os.path.join(folder, os.path.dirname(path)), exist_ok=True)
    with open(os.path.join(folder, path), 'wb') as file:
      file.write(b'scan')


def _rename(rng, files):
  """Moves files to other names, some of them not of a scan."""
  changed = {}
  for name, content in files.items():
    parts = name.split('/')
    if not rng.integers(3):
      at = int(rng.integers(len(parts)))
      parts[at] = mutations.choose(
        rng,
        [
          'subset0',
          'subset9',
          'subset10',
          'subset',
          'train',
          'validation',
          '.x',
        ]
        + [
          parts[at] + '.mhd',
          'a.nii.gz',
          '.mhd',
          'x' * 250,
          'test',
          'a\nb.mhd',
        ]
        + ['\u0663', '\udcff.mhd', 'subset\u0663', ' ', parts[-1], 'b.npy'],
      )
      if not rng.integers(4):
        parts.insert(at, mutations.choose(rng, ['subset0', 'a', 'train']))
      if not rng.integers(6):
        parts[at] = mutations.value_text(rng).replace('/', '')[:200] or 'x'
    changed['/'.join(parts)] = content
  return changed


def _find_scans(folder):
  found = luna16.find_scans(folder)
  assert found == sorted(found)
  assert all(os.path.exists(one.path) for one in found)
  for one in found:
    one.scan_id.encode()
    luna16.lung_mask_path(folder, one.scan_id)


def _write_annotations(folder):
  with open(os.path.join(folder, luna16.ANNOTATIONS_FILE), 'w') as file:
    file.write('seriesuid,coordX,coordY,coordZ,diameter_mm\n')
    for row in range(4):
      file.write(f'{_UID}{row},-100.5{row},67.2,-231.8{row},6.{row}\n')


def _write_candidates(folder):
  with open(os.path.join(folder, luna16.CANDIDATES_FILE), 'w') as file:
    file.write('seriesuid,coordX,coordY,coordZ,class\n')
    for row in range(4):
      file.write(f'{_UID}{row},-100.5{row},67.2,-231.8{row},{row % 2}\n')


def _write_released(folder, dtype=np.float32, folds=1, validation=True):
  rng = np.random.default_rng(0)
  for fold in range(folds):
    first = released_npy.WORDS_PER_FILE * fold
    words = np.repeat(np.arange(first, first + 50), 1 + fold % 2)
    for split, resolution in [
      *((schema.TRAIN, one) for one in schema.TRAIN_RESOLUTIONS),
      *((schema.VALIDATION, one) for one in schema.VALIDATION_RESOLUTIONS),
    ]:
      if split == schema.VALIDATION and not validation:
        continue
      cubes = rng.uniform(size=(len(words), *_SMALL_CUBE)).astype(dtype)
      for kind, array in ('data', cubes), ('label', words[:, np.newaxis]):
        name = released_npy.file_name(kind, split, resolution, fold)
        np.save(os.path.join(folder, name), array.astype(dtype))


def _read_released(folder):
  with mock.patch.object(schema, 'CUBE_SHAPE', _SMALL_CUBE):
    parts = released_npy.open_parts(folder)
    list(released_npy.notes(parts, 30))
    for part in parts:
      part.ranks()
      assert part.read_cube(0).dtype == np.int16


def _damage_released(rng, data):
  """Damages a file of cubes or of labels."""
  if rng.integers(3):
    return mutations.npy_header(rng, data)
  at = len(data) - 4 * int(rng.integers(1, 60))
  return data[:at] + mutations.integer_bytes(rng)[:4].ljust(4) + data[at + 4 :]


def _rename_released(rng, files):
  if rng.integers(8):
    return _released(rng, files)
  name = mutations.choose(rng, sorted(files))
  other = mutations.choose(
    rng,
    [name.replace('fold0', f'fold{fold}') for fold in (1, 2, 99, '0' * 300)]
    + [name.replace('fold0', f'fold{"9" * 200}'), name.replace('0', '\u0663')]
    + [name.replace('train', 'val'), name.replace('1_', '3_')],
  )
  changed = {**files, other: files[name]}
  if rng.integers(2):
    changed.pop(name, None)
  return changed


_released = files_lib.mutate_with({'': _damage_released})


def _write_vocabulary(folder, frame='voxel'):
  words = tuple(
    vocabulary.Word(word, f'train{word}', (word, 9, 2 * word))
    for word in range(3)
  )
  instances = [
    vocabulary.Instance(
      split=split,
      word=word.word,
      rank=rank,
      resolution=resolution,
      scan_id=f'{split}{(word.word + rank) % 3}',
      origin=word.place,
      size=(64, 64, 32),
      distance=0.1 * rank,
    )
    for word in words
    for split, resolutions in ((schema.TRAIN, 3), (schema.VALIDATION, 1))
    for rank in range(2)
    for resolution in range(resolutions)
  ]
  vocabulary.write_vocabulary(
    folder,
    vocabulary.Vocabulary(
      settings.Settings(words=3, instances=2, frame=frame),
      words,
      tuple(sorted(instances)),
      ('a note',),
    ),
  )


def _read_vocabulary(folder):
  found = vocabulary.read_vocabulary(folder)
  # What it holds can be used: it can be written again.
  for one in found.instances:
    hash(one)
    np.array([*one.origin, *one.size], np.int64)


def _write_quality(folder):
  instances = tuple(
    vocabulary.Instance(
      split=schema.TRAIN,
      word=word,
      rank=rank,
      resolution=0,
      scan_id=f'scan{rank}',
      origin=(0, 0, 0),
      size=(64, 64, 32),
      distance=0.0,
    )
    for word in range(2)
    for rank in range(3)
  )
  scores = quality.Scores(3, 0.5, 0.25, 0.1, 0.2, 3.5)
  quality.write_quality(
    folder,
    quality.Quality(
      overall=scores,
      words={0: scores, 1: scores},
      errors_mm={(one.split, one.word, one.rank): 3.5 for one in instances},
    ),
  )


def _write_logs(folder, fixtures=None):
  for number, name in enumerate(('train_data1', 'train_data2', 'train_data3')):
    with open(os.path.join(folder, f'{name}_vwGen_exRef.txt'), 'w') as file:
      file.write(
        f'/data/subset0/a.npy#1{number},6,3,{64 - number},32#0\n'
        f'C:\\data\\subset1\\b.mhd#10,6,3,{64 - number},32#0\n'
        f'/data/subset1/b.npy#5,6,7,{64 + number},32#1\n'
        f'/data/subset0/a.npy#5,6,7,{64 + number},32#1.0\n'
      )
  with open(os.path.join(folder, 'val_data1_vwGen_exRef.txt'), 'w') as file:
    file.write('v#10,6,3,64,32#0\nv#5,6,7,64,32#1\n')


def _log_seeds(fixtures):
  hu = np.zeros(_SCAN_SIZE, np.int16)
  for subset, scan_id in enumerate('abv'):
    folder = os.path.join(
      fixtures, 'scans', f'subset{subset if subset < 2 else 5}'
    )
    os.makedirs(folder, exist_ok=True)
    flip = -1.0 if scan_id == 'b' else 1.0
    reader.write_scan(
      os.path.join(folder, f'{scan_id}.mhd'),
      hu,
      geometry_lib.Geometry(
        _SCAN_SIZE, direction=(flip, 0, 0, 0, flip, 0, 0, 0, 1)
      ),
    )
  # The third is stored along another axis, as the logs do not foresee.
  scan_files.write(
    os.path.join(fixtures, 'scans', 'subset0', 'odd.mha'),
    np.zeros((40, 90, 80), np.int16),
    direction=[[0, 1, 0], [0, 0, 1], [1, 0, 0]],
  )
  return files_lib.seeds_of(_write_logs)(fixtures)


def _read_logs(folder):
  scans = os.path.join(folder, '..', 'fixtures', 'scans')
  published_log.read_logs(folder, _scans_of(os.path.abspath(scans)))


@functools.cache
def _scans_of(folder):
  return {one.scan_id: one for one in luna16.find_scans(folder)}


def _log(rng, data):
  if rng.integers(2):
    return mutations.text_tokens(rng, data)
  lines = data.decode('utf-8', 'replace').splitlines() or ['']
  at = int(rng.integers(len(lines)))
  fields = lines[at].replace('#', ',').split(',')
  fields[int(rng.integers(len(fields)))] = mutations.choose(
    rng, ['0', '1', '27', '64', '32', '99999', 'a', 'b', 'odd', 'v', 'none']
  )
  if len(fields) == 7:
    path, *box, label = fields
    lines[at] = f'{path}#{",".join(box)}#{label}'
  return mutations.encode('\n'.join(lines))


def _write_descriptors(folder, dtype='float32'):
  rng = np.random.default_rng(0)
  vocabulary.write_descriptors(
    folder, ['a', 'b', 'c'], rng.normal(size=(3, 5)).astype(dtype)
  )


def _read_descriptors(folder):
  found = descriptor_file.read(
    os.path.join(folder, vocabulary.DESCRIPTORS_FILE), ['c', 'a']
  )
  assert found.dtype == np.float32 and len(found) == 2


def _npz(rng, data):
  return mutations.zip_members(
    rng, data, lambda rng, data, _: mutations.npy_header(rng, data)
  )


def _write_table(folder, kind='labels', split=False):
  rows = {
    'labels': [
      'scan,label',
      'a.mhd,benign',
      'b/c.nii.gz, malignant',
      'd,benign',
    ],
    'masks': ['scan,mask', 'a.mhd,a_mask.mhd', 'b.mhd,b_mask.mhd'],
    'places': ['scan,x,y,z,label', 'a.mhd,1,-2.5,3e1,yes', 'a.mhd,4,5,6,no'],
  }[kind]
  if split:
    rows = [
      f'{row},{"train" if at else "split"}' for at, row in enumerate(rows)
    ]
  with open(os.path.join(folder, label_table.TABLE_FILE), 'w') as file:
    file.write('\n'.join(rows) + '\n')


def _read_table(folder):
  found = label_table.read(folder)
  assert found.rows
  assert {row.split for row in found.rows} <= set(label_table.SPLITS)


_USER = (errors.UserError,)
_CSV = files_lib.mutate_with({'': mutations.csv_cells})

TARGETS = (
  targets.Target(
    name='folder of scans',
    seeds=files_lib.seeds_of(
      _write_layout,
      {'paths': ('subset0/a.mhd', 'subset0/a.raw', 'subset7/subset7/b.mhd')},
      {'paths': ('train/a.nii.gz', 'train/b/1.dcm', 'validation/c.npy')},
      {'paths': ('subset1/a.mhd', 'seg-lungs-LUNA16/a.mhd', 'notes.txt')},
    ),
    mutate=_rename,
    read=_find_scans,
    errors=_USER,
    modules=(luna16,),
  ),
  targets.Target(
    name='annotations.csv',
    seeds=files_lib.seeds_of(_write_annotations),
    mutate=_CSV,
    read=luna16.read_annotations,
    errors=_USER,
    modules=(luna16,),
  ),
  targets.Target(
    name='candidates_V2.csv',
    seeds=files_lib.seeds_of(_write_candidates),
    mutate=_CSV,
    read=luna16.read_candidates,
    errors=_USER,
    modules=(luna16,),
  ),
  targets.Target(
    name='released .npy',
    seeds=files_lib.seeds_of(
      _write_released,
      {},
      {'dtype': np.float64, 'folds': 2},
      {'validation': False},
    ),
    mutate=_rename_released,
    read=_read_released,
    errors=_USER,
    modules=(released_npy,),
  ),
  targets.Target(
    name='vocabulary',
    seeds=files_lib.seeds_of(_write_vocabulary, {}, {'frame': 'lung'}),
    mutate=files_lib.mutate_with(
      {'.json': mutations.json_value, '.csv': mutations.csv_cells}
    ),
    read=_read_vocabulary,
    errors=_USER,
    modules=(vocabulary, settings),
    leaves_out=frozenset(
      ('write_vocabulary', 'write_rejected', 'write_descriptors', '_replacing')
      + ('check_same',)
    ),
  ),
  targets.Target(
    name='quality.json',
    seeds=files_lib.seeds_of(_write_quality),
    mutate=files_lib.mutate_with({'': mutations.json_value}),
    read=quality.read_quality,
    errors=_USER,
    modules=(quality,),
    leaves_out=frozenset(
      one
      for one in vars(quality)
      if callable(getattr(quality, one)) and one != 'read_quality'
    ),
  ),
  targets.Target(
    name='text logs',
    seeds=_log_seeds,
    mutate=files_lib.mutate_with({'': _log}),
    read=_read_logs,
    errors=(errors.UserError, reader.ScanError),
    modules=(published_log,),
    leaves_out=frozenset(('write_logs', 'to_stored')),
  ),
  targets.Target(
    name='descriptors.npz',
    seeds=files_lib.seeds_of(_write_descriptors),
    mutate=files_lib.mutate_with({'': _npz}),
    read=_read_descriptors,
    errors=_USER,
    modules=(descriptor_file,),
    leaves_out=frozenset(('check_model_output',)),
  ),
  targets.Target(
    name='labels.csv',
    seeds=files_lib.seeds_of(
      _write_table,
      *({'kind': kind} for kind in ('labels', 'masks', 'places')),
      {'kind': 'labels', 'split': True},
    ),
    mutate=_CSV,
    read=_read_table,
    errors=_USER,
    modules=(label_table,),
  ),
)
