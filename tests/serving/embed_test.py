"""Embedding a scan: places by brute force, results cube by cube."""

import os

import numpy as np
import pytest
import tensorflow as tf

from transvw_tf2 import errors
from transvw_tf2.models import unet3d
from transvw_tf2.scans import geometry
from transvw_tf2.scans import reader
from transvw_tf2.serving import embed
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures

_CUBE = (8, 6, 4)


@pytest.fixture(name='model', scope='module')
def _model(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('embed') / 'model')
  model = unet3d.UNet3D(base_filters=2, depth=2)
  export.export_encoder(model, path, {}, cube_shape=_CUBE)
  return path


@pytest.fixture(name='encoder', scope='module')
def _encoder(model):
  return encoders.load(model, signatures.CUBES)


def _scan(size=(19, 13, 10), seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-1024, 2000, size).astype(np.int16)


@pytest.mark.parametrize(
  ('size', 'stride'),
  [
    ((8, 6, 4), (8, 6, 4)),
    ((16, 12, 8), (8, 6, 4)),
    ((19, 13, 10), (8, 6, 4)),
    ((19, 13, 10), (3, 1, 2)),
    ((9, 7, 5), (1, 6, 4)),
  ],
)
def test_places_cover_every_voxel(size, stride):
  places = embed.cube_places(size, _CUBE, stride)
  assert places.dtype == np.int32
  covered = np.zeros(size, bool)
  for x, y, z in places:
    box = covered[x : x + 8, y : y + 6, z : z + 4]
    assert box.shape == _CUBE  # inside of the scan
    box[:] = True
  assert covered.all()
  assert len(np.unique(places, axis=0)) == len(places)
  assert places.tolist() == sorted(places.tolist())


def test_places_by_hand():
  places = embed.cube_places((19, 6, 4), _CUBE, _CUBE)
  assert places.tolist() == [[0, 0, 0], [8, 0, 0], [11, 0, 0]]
  places = embed.cube_places((16, 6, 4), _CUBE, (4, 6, 4))
  assert places[:, 0].tolist() == [0, 4, 8]


@pytest.mark.parametrize(
  'stride', [(0, 6, 4), (9, 6, 4), (8, 6, 5), (-1, 6, 4), (8, 6)]
)
def test_places_refuse_strides(stride):
  with pytest.raises(errors.UserError, match='from 1,1,1 to 8,6,4'):
    embed.cube_places((20, 20, 20), _CUBE, stride)


def test_places_refuse_more_cubes_than_wanted():
  assert len(embed.cube_places((19, 13, 10), _CUBE, (3, 1, 2), most=160)) == 160
  with pytest.raises(errors.UserError, match='into 160 cubes, wanted at most'):
    embed.cube_places((19, 13, 10), _CUBE, (3, 1, 2), most=159)
  # Of so many not even the places are made.
  with pytest.raises(errors.UserError, match='a larger one'):
    embed.cube_places((10**5,) * 3, _CUBE, (1, 1, 1), most=1000)


def test_places_refuse_a_small_scan():
  with pytest.raises(errors.UserError, match='scan has 20 x 5 x 20 voxels'):
    embed.cube_places((20, 5, 20), _CUBE, _CUBE)


def test_batches_are_lazy_and_hold_the_cubes():
  hu = _scan()
  places = embed.cube_places(hu.shape, _CUBE, _CUBE)
  batches = embed.cut_batches(hu, places, _CUBE, batch_size=5)
  assert iter(batches) is batches
  cubes = list(batches)
  assert [len(batch) for batch in cubes] == [5, 5, 5, 5, 5, 2]
  cubes = np.concatenate(cubes)
  assert cubes.dtype == np.int16
  for cube, (x, y, z) in zip(cubes, places, strict=True):
    for offset in np.ndindex(_CUBE):
      voxel = hu[x + offset[0], y + offset[1], z + offset[2]]
      assert cube[offset] == voxel


@pytest.mark.parametrize('batch_size', [1, 4, 100])
def test_embeds_each_cube(model, encoder, batch_size):
  hu = _scan()
  result = embed.embed_scan(encoder, hu, (7, 6, 3), batch_size)
  loaded = tf.saved_model.load(model)
  function = loaded.signatures['serving_default']
  assert result.embeddings.shape == (len(result.places), 8)
  assert result.embeddings.dtype == result.mean.dtype == np.float32
  for embedding, (x, y, z) in zip(
    result.embeddings, result.places, strict=True
  ):
    cube = hu[x : x + 8, y : y + 6, z : z + 4].astype(np.float32)
    want = function(cubes=tf.constant(cube[None, ..., None]))['embedding'][0]
    np.testing.assert_allclose(embedding, want, atol=1e-5)
  np.testing.assert_allclose(
    result.mean, np.mean(result.embeddings, axis=0), atol=1e-6
  )


@pytest.fixture(name='large_encoder', scope='module')
def _large_encoder(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('embed') / 'large')
  network = unet3d.UNet3D(base_filters=2, depth=2)
  export.export_encoder(network, path, {}, cube_shape=(32, 24, 16))
  return encoders.load(path, signatures.CUBES)


@pytest.mark.parametrize('batch_size', [1, 8])
def test_cubes_that_overlap_share_work(large_encoder, monkeypatch, batch_size):
  hu = _scan((66, 49, 34))  # the last cubes along y begin at an odd voxel
  stride = (8, 6, 4)
  places = embed.cube_places(hu.shape, (32, 24, 16), stride)
  batches = embed.cut_batches(hu, places, (32, 24, 16), 8)
  want = np.concatenate([large_encoder.embed(cubes) for cubes in batches])
  assert len(want) > 100 and np.ptp(want, axis=0).max() > 1e-3
  with monkeypatch.context() as patch:
    patch.setattr(encoders.Encoder, 'embed', None)  # nothing is embedded alone
    got = embed.embed_scan(large_encoder, hu, stride, batch_size)
  np.testing.assert_array_equal(got.places, places)
  np.testing.assert_allclose(
    got.embeddings, want, atol=1e-5 * np.abs(want).max()
  )


def test_windows_of_a_loaded_model(large_encoder):
  hu = _scan((34, 24, 22))
  # As the README calls it.
  got = large_encoder.loaded.embed_windows(hu, [0, 2], [0], [0, 4, 6])
  cubes = [hu[x : x + 32, :, z : z + 16] for x in (0, 2) for z in (0, 4, 6)]
  want = large_encoder.embed(np.stack(cubes))
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_models_without_windows_embed_cubes_alone(large_encoder, monkeypatch):
  hu = _scan((48, 24, 16))
  want = embed.embed_scan(large_encoder, hu, (4, 24, 16)).embeddings
  monkeypatch.delattr(large_encoder.loaded, signatures.EMBED_WINDOWS)
  got = embed.embed_scan(large_encoder, hu, (4, 24, 16)).embeddings
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_stride_is_the_cube_by_default(encoder):
  result = embed.embed_scan(encoder, _scan((16, 12, 8)))
  assert len(result.places) == 8


def test_refuses_a_batch_of_none(encoder):
  with pytest.raises(errors.UserError, match='batch_size is 0'):
    embed.embed_scan(encoder, _scan(), batch_size=0)


def test_parse_stride():
  assert embed.parse_stride(['8', ' 6', '4']) == (8, 6, 4)
  for values in (['8', '6'], ['8', '6', 'x'], ['8', '6', '4.0'], []):
    with pytest.raises(errors.UserError, match='wanted three integers'):
      embed.parse_stride(values)


def test_load_refuses_what_is_no_model(tmp_path):
  with pytest.raises(errors.UserError, match='is not a folder'):
    encoders.load(str(tmp_path / 'nothing'), signatures.CUBES)
  with pytest.raises(errors.UserError, match='is not a SavedModel'):
    encoders.load(str(tmp_path), signatures.CUBES)
  (tmp_path / 'saved_model.pb').write_bytes(b'not a protocol buffer')
  with pytest.raises(errors.UserError, match='cannot be loaded'):
    encoders.load(str(tmp_path), signatures.CUBES)


def test_load_refuses_a_foreign_model(tmp_path):
  module = tf.Module()
  module.double = tf.function(
    lambda x: 2 * x, input_signature=[tf.TensorSpec((), tf.float32)]
  )
  tf.saved_model.save(module, str(tmp_path), {'double': module.double})
  with pytest.raises(errors.UserError, match=r"signatures \['double'\]"):
    encoders.load(str(tmp_path), signatures.CUBES)


def test_embeds_a_file(model, tmp_path):
  scan = str(tmp_path / 'scan.mhd')
  size = (19, 13, 10)
  reader.write_scan(scan, _scan(size), geometry.Geometry(size))
  output = tmp_path / 'new' / 'scan.npz'
  embed.embed_file(model, scan, str(output), batch_size=3)
  with np.load(output, allow_pickle=False) as file:
    arrays = dict(file)
  assert sorted(arrays) == ['embeddings', 'mean', 'places']
  assert arrays['embeddings'].shape == (27, 8)
  assert arrays['embeddings'].dtype == arrays['mean'].dtype == np.float32
  assert arrays['places'].shape == (27, 3)
  assert arrays['places'].dtype == np.int32
  assert arrays['mean'].shape == (8,)
  want = embed.embed_scan(encoders.load(model, signatures.CUBES), _scan(size))
  np.testing.assert_allclose(arrays['embeddings'], want.embeddings, atol=1e-6)
  assert os.listdir(output.parent) == ['scan.npz']


def test_bad_inputs_leave_no_output(model, tmp_path):
  output = tmp_path / 'scan.npz'
  with pytest.raises(reader.ScanError, match='missing_file'):
    embed.embed_file(model, str(tmp_path / 'no.mhd'), str(output))
  with pytest.raises(errors.UserError, match='is a folder, wanted a file'):
    embed.embed_file(model, 'scan.mhd', str(tmp_path))
  assert not output.exists()


def test_unwritable_output_is_one_line(encoder, tmp_path):
  blocker = tmp_path / 'file'
  blocker.write_text('')
  result = embed.embed_scan(encoder, _scan(_CUBE))
  with pytest.raises(errors.UserError, match='cannot be written'):
    embed.write_npz(str(blocker / 'x.npz'), result)


def test_unwritable_output_is_found_before_the_work(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot be written'):
    embed.embed_file('no', 'no.mhd', str(tmp_path / 'file' / 'x.npz'))
  # Root may write anywhere, so what the system says is put on.
  monkeypatch.setattr(os, 'access', lambda *_: False)
  with pytest.raises(errors.UserError, match='is not to be written to'):
    embed.embed_file('no', 'no.mhd', str(tmp_path / 'x.npz'))
