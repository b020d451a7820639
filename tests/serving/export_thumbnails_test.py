"""The exported encoder of an autoencoder."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import unet3d
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures

_SHAPE = (12, 8, 4)


@pytest.fixture(name='model', scope='module')
def _model():
  model = unet3d.UNet3D(base_filters=2, depth=3, skip_connections=False)
  volumes = np.random.default_rng(0).random((4, *_SHAPE, 1), np.float32)
  model(volumes, training=True)  # moves the moving statistics
  return model


@pytest.fixture(name='exported', scope='module')
def _exported(model, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  export.export_thumbnail_encoder(
    model, path, {'epoch': 7}, thumbnail_shape=_SHAPE
  )
  return path


def test_signatures_take_hu_and_give_the_pooled_bottleneck(model, exported):
  rng = np.random.default_rng(1)
  hu = rng.integers(-2000, 3000, (3, *_SHAPE, 1)).astype(np.int16)
  scaled = (np.clip(hu.astype(np.float64), -1000, 1000) + 1000) / 2000
  bottleneck, _ = model.encoder(scaled.astype(np.float32), training=False)
  want = np.mean(bottleneck, axis=(1, 2, 3))
  assert want.shape == (3, 16) and np.ptp(want) > 1e-3
  loaded = tf.saved_model.load(exported)
  strings = tf.constant([one.astype('<i2').tobytes() for one in hu])
  inputs = {
    'serving_default': {'thumbnails': tf.constant(hu, tf.float32)},
    'embed_thumbnails': {'thumbnails': tf.constant(hu, tf.float32)},
    'embed_thumbnails_int16': {'thumbnails': tf.constant(hu)},
    'embed_bytes': {'bytes': strings},
  }
  assert set(loaded.signatures) == set(inputs)
  for name, given in inputs.items():
    got = loaded.signatures[name](**given)['embedding']
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_metadata_tells_what_goes_in(exported):
  with open(os.path.join(exported, 'transvw_model.json')) as file:
    metadata = json.load(file)
  assert metadata.pop('package_version') and metadata.pop('license')
  assert set(metadata.pop('source')) == {'commit', 'local_changes'}
  takes = {
    name: [(one['name'], one['dtype'], one['unit']) for one in entry['inputs']]
    for name, entry in metadata.pop('signatures').items()
  }
  assert takes == {
    'serving_default': [('thumbnails', 'float32', 'HU')],
    'embed_thumbnails': [('thumbnails', 'float32', 'HU')],
    'embed_thumbnails_int16': [('thumbnails', 'int16', 'HU')],
    'embed_bytes': [
      ('bytes', 'string', 'HU as little-endian int16, [x, y, z] in C order')
    ],
  }
  assert metadata.pop('orientation').startswith('LPS')
  assert metadata == {
    'axes': ['x', 'y', 'z'],
    'embedding_size': 16,
    'format_version': 1,
    'hu_window': [-1000, 1000],
    'pooling_grid': [1, 1, 1],
    'precision': 'float32',
    'input': 'thumbnails',
    'network': 'UNet3D',
    'thumbnail_shape': [12, 8, 4],
    'training': {'epoch': 7},
  }


def test_only_the_encoder_is_written(model, exported):
  names = [
    name
    for name, shape in tf.train.list_variables(
      os.path.join(exported, 'variables', 'variables')
    )
    if shape
  ]
  # A kernel and a bias each, no batch norm.
  assert len(names) == 2 * len(model.encoder.conv_blocks)


def test_it_is_no_encoder_of_cubes(exported):
  with pytest.raises(errors.UserError, match="wanted 'embed_cubes_int16'"):
    encoders.load(exported, signatures.CUBES)
