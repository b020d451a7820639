"""Relative paths are found by workers that have another working directory."""

import os
import subprocess
import sys

import apache_beam as beam
from apache_beam.options import pipeline_options
import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow_datasets as tfds

from beam_jobs import descriptor_settings
from beam_jobs import labelled_scans
from beam_jobs import luna16_nodules
from beam_jobs import transvw_luna16
from tests.beam_jobs import tiny_scans
from transvw_tf2.discovery import settings as settings_lib
from transvw_tf2.models import unet3d
from transvw_tf2.scans import luna16
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.serving import export

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
_SETTINGS = {'words': 2, 'xy_border': 4, 'z_border': 4, 'min_distance': 1.0}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
  """Runs pipelines in a folder beside that of the user."""
  (tmp_path / 'user').mkdir()
  (tmp_path / 'worker').mkdir()
  monkeypatch.chdir(tmp_path / 'user')
  run = beam.Pipeline.run
  runs = []

  def run_elsewhere(*args, **kwargs):
    runs.append(os.getcwd())
    os.chdir(tmp_path / 'worker')
    try:
      return run(*args, **kwargs)
    finally:
      os.chdir(tmp_path / 'user')

  monkeypatch.setattr(beam.Pipeline, 'run', run_elsewhere)
  yield
  assert runs
  assert not os.listdir(tmp_path / 'worker')


@pytest.fixture(name='thumbnail_encoder')
def _thumbnail_encoder():
  network = unet3d.UNet3D(base_filters=1, depth=2, skip_connections=False)
  export.export_thumbnail_encoder(network, 'thumbnail_encoder', {})
  return 'thumbnail_encoder'


def test_words_by_an_autoencoder(import_main, thumbnail_encoder):
  tiny_scans.write_luna16('scans')
  import_main('beam_jobs.discover_words').run(
    'scans',
    'words',
    settings_lib.Settings(**_SETTINGS),
    described_by=descriptor_settings.DescriptorSettings(
      'autoencoder', thumbnail_encoder
    ),
    measure=True,
  )
  assert {'vocabulary.json', 'quality.json'} <= set(os.listdir('words'))


def test_an_index(import_main):
  tiny_scans.write_luna16('scans')
  import_main('beam_jobs.index_scans').run('scans', 'index')
  assert 'features.json' in os.listdir('index')


@pytest.mark.long
def test_descriptors_of_an_index(import_main, thumbnail_encoder):
  tiny_scans.write_luna16('scans')
  # In a process of its own: two mains define the same flags.
  subprocess.run(
    [
      *(sys.executable, '-m', 'beam_jobs.index_scans'),
      *('--scans=scans', '--output=index'),
    ],
    env=os.environ | {'PYTHONPATH': _ROOT},
    check=True,
  )
  import_main('beam_jobs.describe_scans').run(
    'index', thumbnail_encoder, 'descriptors.npz'
  )
  assert os.path.exists('descriptors.npz')


def test_embeddings(import_main):
  tiny_scans.write_luna16('scans', train=1, validation=1, held_out=0)
  network = unet3d.UNet3D(base_filters=1, depth=2)
  network.build((None, 64, 64, 32, 1))
  export.export_encoder(network, 'encoder', {})
  result = import_main('beam_jobs.embed_scans').run(
    'scans', 'encoder', 'embeddings'
  )
  assert (result.written, result.rejected) == (2, ())


def _build(builder):
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir='scans',
      beam_options=pipeline_options.PipelineOptions(['--runner=FnApiRunner']),
    )
  )
  assert os.listdir('data')
  assert next(iter(builder.as_dataset('train')))


def test_data_set_of_words():
  tiny_scans.write_luna16('scans')
  config = transvw_luna16.Builder.builder_config_cls(name='tiny', **_SETTINGS)
  _build(transvw_luna16.Builder(data_dir='data', config=config))


def test_data_set_of_nodules_with_masks():
  phantom.write_luna16('scans', scans=10, size=(64, 64, 40), seed=1)
  os.makedirs('masks')
  for one in luna16.find_scans('scans'):
    scan = reader.read_scan(one.path)
    mask = np.zeros(scan.hu.shape, np.uint8)
    for nodule in luna16.read_annotations('scans'):
      if nodule.scan_id == one.scan_id:
        x, y, z = np.rint(scan.geometry.world_to_voxel(nodule.centre)).astype(
          int
        )
        mask[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 1
    image = sitk.GetImageFromArray(mask.T)
    image.CopyInformation(sitk.ReadImage(one.path))
    sitk.WriteImage(image, f'masks/{one.scan_id}.mhd')
  config = luna16_nodules.Builder.builder_config_cls(
    name='tiny',
    task='nodule_segmentation',
    masks='masks',
    cube_shape=(16, 16, 8),
  )
  _build(luna16_nodules.Builder(data_dir='data', config=config))


def test_data_set_of_labelled_scans():
  tiny_scans.write_luna16('scans', train=2, validation=1, held_out=0)
  names = sorted(
    os.path.relpath(os.path.join(folder, file), 'scans')
    for folder, _, files in os.walk('scans')
    for file in files
    if file.endswith('.mhd')
  )
  with open('scans/labels.csv', 'w', encoding='utf-8') as file:
    file.write('scan,label,split\n')
    for name, row in zip(
      names, ('a,train', 'b,train', 'a,validation'), strict=True
    ):
      file.write(f'{name},{row}\n')
  config = labelled_scans.Builder.builder_config_cls(
    name='tiny', task='classification', cube_shape=(16, 16, 8)
  )
  _build(labelled_scans.Builder(data_dir='data', config=config))
