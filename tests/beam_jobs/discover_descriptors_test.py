"""Discovery by the descriptors of an autoencoder, or of a file."""

import os
from unittest import mock

from absl.testing import flagsaver
import numpy as np
import pytest

from beam_jobs import descriptor_file
from beam_jobs.transvw_luna16 import transvw_luna16_dataset_builder
from tests.beam_jobs import tiny_scans
from transvw_tf2 import errors
from transvw_tf2.discovery import vocabulary
from transvw_tf2.models import unet3d
from transvw_tf2.scans import reader
from transvw_tf2.scans import thumbnail
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures

_SETTINGS = {'words': 2, 'xy_border': 4, 'z_border': 4, 'min_distance': 1.0}


@pytest.fixture(name='model', scope='module')
def _model(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  network = unet3d.UNet3D(base_filters=1, depth=2, skip_connections=False)
  export.export_thumbnail_encoder(network, path, {})
  return path


@pytest.fixture(name='scans')
def _scans(tmp_path):
  scans = tiny_scans.write_luna16(tmp_path / 'scans')
  tiny_scans.write_bad(os.path.join(scans, 'subset0'))
  return scans


@pytest.fixture(name='job')
def _job(import_main):
  return import_main('beam_jobs.discover_words')


def _read(folder, leave_out=()):
  return {
    name: open(os.path.join(folder, name), 'rb').read()
    for name in sorted(os.listdir(folder))
    if name not in leave_out
  }


def test_an_autoencoder_describes_while_each_scan_is_read_once(
  job, scans, model, tmp_path
):
  output = str(tmp_path / 'vocabulary')
  flags = {'descriptor': 'autoencoder', 'descriptor_model': model}
  with (
    flagsaver.flagsaver(scans=scans, output=output, **flags, **_SETTINGS),
    mock.patch.object(
      reader, 'read_scan', side_effect=reader.read_scan
    ) as read,
  ):
    job.main(['discover_words'])
  paths = [call.args[0] for call in read.call_args_list]
  assert len(paths) == len(set(paths)) == 6 + 5
  found = vocabulary.read_vocabulary(output)
  assert len(found.words) == 2
  encoder = encoders.load(model, signatures.THUMBNAILS)
  numbers = range(6)
  ids = [f'1.2.840.{number:03d}' for number in numbers]
  wanted = encoder.embed(
    np.stack(
      [thumbnail.make_thumbnail(tiny_scans.make_hu(one)) for one in numbers]
    )
  )
  matrix = descriptor_file.read(os.path.join(output, 'descriptors.npz'), ids)
  np.testing.assert_array_equal(matrix, wanted)
  # Patients are ranked by these descriptors.
  for one in found.instances:
    reference = found.words[one.word].scan_id
    distance = np.linalg.norm(
      (matrix[ids.index(one.scan_id)] - matrix[ids.index(reference)]).astype(
        np.float64
      )
    )
    assert one.distance == pytest.approx(distance, abs=1e-6)


def test_descriptors_are_written_alone_and_used_again(
  job, scans, model, tmp_path, capsys
):
  whole, only, again = (str(tmp_path / one) for one in ('a', 'b', 'c'))
  model_flags = {'descriptor': 'autoencoder', 'descriptor_model': model}
  file = os.path.join(only, 'descriptors.npz')
  for output, flags in (
    (whole, model_flags),
    (only, model_flags | {'descriptors_only': True}),
    (again, {'descriptors': file}),
  ):
    with flagsaver.flagsaver(scans=scans, output=output, **flags, **_SETTINGS):
      job.main(['discover_words'])
  assert sorted(os.listdir(only)) == [
    *('counters.json', 'descriptors.npz', 'rejected.csv')
  ]
  assert f'descriptors: {only}' in capsys.readouterr().out
  assert _read(whole) == _read(again)
  assert _read(only).items() <= _read(whole).items()


@pytest.mark.parametrize('kind', ['other scans', 'nan'])
def test_descriptors_that_cannot_be_used_are_one_line(
  job, scans, tmp_path, kind
):
  ids = [f'1.2.840.{number:03d}' for number in range(6)]
  matrix = np.zeros((6, 3), np.float32)
  if kind == 'nan':
    matrix[3] = np.nan
  vocabulary.write_descriptors(
    str(tmp_path),
    ids[:5] if kind == 'other scans' else ids,
    matrix[:5] if kind == 'other scans' else matrix,
  )
  flags = {'descriptors': str(tmp_path / 'descriptors.npz')}
  output = str(tmp_path / 'vocabulary')
  text = {
    'other scans': r'lack 1 of 6 scans, first 1\.2\.840\.005',
    'nan': r'NaN or infinite .* first 1\.2\.840\.003',
  }[kind]
  with (
    flagsaver.flagsaver(scans=scans, output=output, **flags, **_SETTINGS),
    pytest.raises(errors.UserError, match=text),
  ):
    job.main(['discover_words'])
  assert sorted(os.listdir(tmp_path)) == ['descriptors.npz', 'scans']


def test_a_wrong_model_is_refused_before_a_scan_is_read(
  job, scans, tmp_path, model
):
  flags = {'descriptor': 'autoencoder', 'descriptor_model': scans}
  output = str(tmp_path / 'vocabulary')
  with (
    flagsaver.flagsaver(scans=scans, output=output, **flags, **_SETTINGS),
    mock.patch.object(reader, 'read_scan') as read,
    pytest.raises(errors.UserError, match='is not a SavedModel'),
  ):
    job.main(['discover_words'])
  assert not read.called
  assert os.listdir(tmp_path) == ['scans']


@pytest.mark.parametrize('kind', ['no file', 'damaged', 'other collection'])
@pytest.mark.parametrize('dry_run', [False, True])
def test_wrong_descriptors_are_refused_before_a_scan_is_read(
  job, scans, tmp_path, kind, dry_run
):
  path = tmp_path / 'descriptors.npz'
  if kind == 'damaged':
    path.write_bytes(b'PK no archive')
  if kind == 'other collection':
    vocabulary.write_descriptors(
      str(tmp_path), ['a', 'b'], np.zeros((2, 3), np.float32)
    )
  text = 'cannot be read'
  if kind == 'other collection':
    text = 'are of 2 scans, first a, and of none of the 11 scans given'
  with (
    flagsaver.flagsaver(
      scans=scans,
      output=str(tmp_path / 'vocabulary'),
      descriptors=str(path),
      dry_run=dry_run,
      **_SETTINGS,
    ),
    mock.patch.object(reader, 'read_scan') as read,
    pytest.raises(errors.UserError, match=text),
  ):
    job.main(['discover_words'])
  assert not read.called
  assert 'vocabulary' not in os.listdir(tmp_path)


def test_the_builder_takes_the_same_settings(model):
  config = transvw_luna16_dataset_builder.BuilderConfig(
    name='autoencoder', descriptor='autoencoder', descriptor_model=model
  )
  assert config.described_by().descriptor_model == model
  with pytest.raises(errors.UserError, match='needs descriptor_model'):
    transvw_luna16_dataset_builder.BuilderConfig(
      name='autoencoder', descriptor='autoencoder'
    )
