"""Damaged folders of embeddings: each file is named in one line."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import embedding_files
from transvw_tf2 import errors
from transvw_tf2.scans import geometry
from transvw_tf2.scans import luna16
from transvw_tf2.serving import embed


@pytest.fixture(name='folder')
def _folder(tmp_path):
  folder = str(tmp_path / 'embeddings')
  settings = embedding_files.Settings('abc', (4, 3, 2), (2, 2, 2), 5)
  embedding_files.prepare_folder(folder, settings)
  embeddings = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  embedding_files.write_scan(
    folder,
    luna16.ScanFile('a', 'a.mhd', 'train'),
    geometry.Geometry((16, 15, 14)),
    embed.ScanEmbedding(
      np.arange(9, dtype=np.int32).reshape(3, 3), embeddings, embeddings[0]
    ),
    (4, 3, 2),
  )
  return folder


def _change(folder, name, column, values):
  """Replaces a column of a table by what `values` makes of its rows."""
  path = f'{folder}/{name}/a.parquet'
  table = pq.ParquetFile(path).read()
  at = table.column_names.index(column)
  new = pa.array(values(table[column].to_pylist()))
  pq.write_table(table.set_column(at, column, new), path)


def test_a_folder_that_was_just_begun_can_be_gone_on_with(
  tmp_path, monkeypatch
):
  """Whenever the run was killed; each state before a change of names."""
  folder = tmp_path / 'embeddings'
  settings = embedding_files.Settings('abc', (4, 3, 2), (2, 2, 2), 5)
  states = []

  def keep_state(function):
    def call(*args, **kwargs):
      if folder.exists():
        with monkeypatch.context() as patch:
          patch.setattr(os, 'makedirs', makedirs)
          states.append(tmp_path / f'state_{len(states)}')
          shutil.copytree(folder, states[-1])
      return function(*args, **kwargs)

    return call

  makedirs = os.makedirs
  monkeypatch.setattr(os, 'makedirs', keep_state(makedirs))
  monkeypatch.setattr(os, 'replace', keep_state(os.replace))
  embedding_files.prepare_folder(str(folder), settings)
  monkeypatch.undo()
  assert len(states) == 3
  for state in states:
    embedding_files.prepare_folder(str(state), settings)
    assert sorted(os.listdir(state)) == ['places', 'scans', 'settings.json']


def test_what_is_written_can_be_read(folder):
  scan = embedding_files.read_scan(folder, 'a')
  assert scan.embeddings.shape == (3, 5)
  assert scan.geometry == geometry.Geometry((16, 15, 14))
  assert embedding_files.count_places(folder, 'a') == 3


@pytest.mark.parametrize(
  ('name', 'column', 'values'),
  [
    ('scans', 'mean', lambda rows: [None]),
    ('scans', 'mean', lambda rows: [rows[0][:-1]]),
    ('scans', 'cubes', lambda rows: [4]),
    ('scans', 'cubes', lambda rows: [None]),
    ('scans', 'size', lambda rows: [[16, 15]]),
    ('scans', 'direction', lambda rows: [[None] * 9]),
    ('scans', 'spacing', lambda rows: ['text']),
    ('places', 'embedding', lambda rows: [rows[0], rows[1][:-1], rows[2]]),
    ('places', 'embedding', lambda rows: [None, rows[1], rows[2]]),
    ('places', 'embedding', lambda rows: [[None] * 5, rows[1], rows[2]]),
    ('places', 'x', lambda rows: [None, 1, 2]),
    ('places', 'x', lambda rows: [2**40, 1, 2]),
  ],
)
def test_tables_of_other_values(folder, name, column, values):
  _change(folder, name, column, values)
  with pytest.raises(
    errors.UserError, match=rf'{name}/a\.parquet|places/a\.parquet'
  ) as raised:
    embedding_files.read_scan(folder, 'a')
  assert 'remove it and run beam_jobs.embed_scans' in str(raised.value)


@pytest.mark.parametrize('rows', [0, 2])
def test_not_one_row_per_scan(folder, rows):
  path = f'{folder}/scans/a.parquet'
  table = pq.ParquetFile(path).read()
  pq.write_table(
    pa.concat_tables([table] * rows) if rows else table.slice(0, 0), path
  )
  for read in embedding_files.read_scan, embedding_files.count_places:
    with pytest.raises(errors.UserError, match='does not hold one row'):
      read(folder, 'a')


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('cube_shape', [4, 3]),
    ('cube_shape', [4, 3, 0]),
    ('stride', '222222'),
    ('stride', [float('inf'), 1, 1]),
    ('embedding_size', float('inf')),
    ('embedding_size', None),
    ('embedding_size', 0),
    ('cube_shape', [4, 3, 10**400]),
  ],
)
def test_settings_of_other_values(folder, key, value):
  path = f'{folder}/settings.json'
  with open(path, encoding='utf-8') as file:
    contents = json.load(file)
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(contents | {key: value}, file)
  with pytest.raises(errors.UserError, match=r'settings\.json cannot be read'):
    embedding_files.read_settings(folder)
