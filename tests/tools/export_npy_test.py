"""Export to the released layout, and the way back through transvw_released."""

import errno
import os
import subprocess
import sys

from absl.testing import flagsaver
from apache_beam.options import pipeline_options
import numpy as np
import pytest
import tensorflow_datasets as tfds

from beam_jobs import transvw_luna16
from beam_jobs import transvw_released
from tests.beam_jobs import tiny_scans
from tests.training import tiny_data
from transvw_tf2 import errors
from transvw_tf2 import output_lock
from transvw_tf2 import schema
from transvw_tf2.scans import released_npy

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SETTINGS = {
  'words': 3,
  'xy_border': 4,
  'z_border': 4,
  'min_distance': 1.0,
}


def _prepare(builder, manual_dir):
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=os.fspath(manual_dir),
      beam_options=pipeline_options.PipelineOptions(['--runner=FnApiRunner']),
    )
  )
  return builder


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """A data set of 3 words in 4 + 2 patients; returns its --data_dir."""
  scans = tiny_scans.write_luna16(tmp_path_factory.mktemp('scans'))
  data_dir = os.fspath(tmp_path_factory.mktemp('data'))
  config = transvw_luna16.Builder.builder_config_cls(name='tiny', **_SETTINGS)
  _prepare(transvw_luna16.Builder(data_dir=data_dir, config=config), scans)
  return data_dir


@pytest.fixture
def export(import_main, tmp_path):
  """Runs the main with flags, as parsed, into tmp_path/npy."""
  module = import_main('tools.export_npy')

  def run(**flags):
    flags = {'output': os.fspath(tmp_path / 'npy')} | flags
    with flagsaver.flagsaver(**flags):
      module.main([])
    return flags['output']

  return run


def _cubes(builder):
  """Returns cubes by (split, word, rank, resolution)."""
  found = {}
  for split in builder.info.splits:
    for one in tfds.as_numpy(builder.as_dataset(split)):
      place = (int(one[name]) for name in ('word', 'rank', 'resolution'))
      key = (split, *place)
      assert key not in found
      found[key] = one['cube']
  return found


def _open(data_dir):
  (path,) = (
    folder
    for folder, _, names in os.walk(data_dir)
    if 'dataset_info.json' in names
  )
  return tfds.builder_from_directory(path)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_way_out_and_back_keeps_every_cube(built, export, tmp_path, dtype):
  folder = export(data=built, dtype=dtype)
  back = transvw_released.Builder(data_dir=os.fspath(tmp_path / 'data'))
  _prepare(back, folder)
  wanted, got = _cubes(_open(built)), _cubes(back)
  assert len(wanted) == 3 * (4 * 3 + 2)
  assert got.keys() == wanted.keys()
  for key, cube in wanted.items():
    np.testing.assert_array_equal(got[key], cube)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_files_are_those_of_the_released_layout(built, export, dtype):
  folder = export(data=built, dtype=dtype)
  names = set(os.listdir(folder))
  assert names == {
    f'{stem}_vwGen_ex_ref_fold0.0.npy'
    for stem in (
      *('train_data1', 'train_data2', 'train_data3'),
      *('train_label1', 'train_label2', 'train_label3'),
      *('val_data1', 'val_label1'),
    )
  }
  cubes = _cubes(_open(built))
  for stem, split, patients in (
    ('train', 'train', 4),
    ('val', 'validation', 2),
  ):
    labels = np.load(f'{folder}/{stem}_label1_vwGen_ex_ref_fold0.0.npy')
    assert labels.dtype == dtype and labels.shape == (3 * patients, 1)
    # Also of the last word: no row is lost.
    np.testing.assert_array_equal(labels[:, 0], np.repeat([0, 1, 2], patients))
    for resolution in (0, 1, 2) if stem == 'train' else (0,):
      data = np.load(
        f'{folder}/{stem}_data{resolution + 1}_vwGen_ex_ref_fold0.0.npy'
      )
      assert data.dtype == dtype and data.shape == (3 * patients, 64, 64, 32)
      for row, values in enumerate(data):
        cube = cubes[split, row // patients, row % patients, resolution]
        np.testing.assert_allclose(
          values, (cube + 1000.0) / 2000.0, rtol=0, atol=1e-7
        )


def test_words_beyond_a_file_go_to_the_next(built, export, monkeypatch):
  monkeypatch.setattr(released_npy, 'WORDS_PER_FILE', 2)
  folder = export(data=built, first_fold=1)
  parts = released_npy.open_parts(folder)
  train = [one for one in parts if one.split == schema.TRAIN]
  assert [(one.fold, one.words.tolist()) for one in train] == [
    *[(1, [0] * 4 + [1] * 4)] * 3,
    *[(2, [2] * 4)] * 3,
  ]
  cubes = _cubes(_open(built))
  for part in parts:
    for row, (word, rank) in enumerate(
      zip(part.words, part.ranks(), strict=True)
    ):
      np.testing.assert_array_equal(
        part.read_cube(row), cubes[part.split, word, rank, part.resolution]
      )
  assert not list(released_npy.notes(parts, 3))


def test_wrong_input_leaves_nothing(built, export, tmp_path):
  with pytest.raises(errors.UserError, match='no data set'):
    export(data=os.fspath(tmp_path))
  tiny_data.write(os.fspath(tmp_path / 'other'))
  with pytest.raises(errors.UserError, match=r"also \['rank', 'resolution'\]"):
    export(data=os.fspath(tmp_path / 'other'))
  assert os.listdir(tmp_path) == ['other']
  with pytest.raises(errors.UserError, match=r'--output .*other exists; give'):
    export(data=built, output=os.fspath(tmp_path / 'other'))


def test_an_output_in_use_or_out_of_reach_is_one_line(built, export, tmp_path):
  with (
    output_lock.hold(os.fspath(tmp_path / 'npy.incomplete')),
    pytest.raises(errors.UserError, match=r'another run is writing to .*npy'),
  ):
    export(data=built)
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='npy cannot be written'):
    export(data=built, output=os.fspath(tmp_path / 'file' / 'npy'))
  assert sorted(os.listdir(tmp_path)) == ['file', 'npy.incomplete']


def test_a_disk_without_room_is_one_line(built, export, tmp_path, monkeypatch):
  wanted = []

  def fail(descriptor, start, size):
    assert (start, size) == (0, os.fstat(descriptor).st_size)
    wanted.append(size)
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', fail)
  with pytest.raises(errors.UserError, match=r'No space left .* make room'):
    export(data=built)
  assert wanted
  assert not os.listdir(tmp_path)


def test_cubes_that_do_not_belong_together(
  built, export, tmp_path, monkeypatch
):
  module = sys.modules['tools.export_npy']
  read = module._read_places
  monkeypatch.setattr(module, '_read_places', lambda *a: read(*a)[1:])
  with pytest.raises(errors.UserError, match=r'resolutions \[\d, \d\] of word'):
    export(data=built)
  assert not os.listdir(tmp_path)


def test_the_command(built, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, 'tools/export_npy.py', '--data', built),
      *('--output', os.fspath(tmp_path / 'npy'), '--dtype', 'float64'),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'8 files in {tmp_path / "npy"}\n'
