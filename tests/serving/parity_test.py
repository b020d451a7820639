"""Keras, SavedModel, REST, gRPC and the batch job give a scan the same vectors.

On synthetic scans and on a real chest CT, where that is found.
"""

import os
import shutil

from absl.testing import flagsaver
import numpy as np
import pytest

from beam_jobs import embedding_files
from tests import real_ct
from tests.serving import serve_process
from transvw_tf2.models import unet3d
from transvw_tf2.scans import phantom
from transvw_tf2.scans import reader
from transvw_tf2.serving import client as client_lib
from transvw_tf2.serving import embed
from transvw_tf2.serving import encoders
from transvw_tf2.serving import export
from transvw_tf2.serving import signatures

kserve = pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import grpc  # noqa: E402, KServe brings it
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc  # noqa: E402

_CUBE = (64, 64, 32)
_BATCH = 8


@pytest.fixture(name='network', scope='module')
def _network():
  network = unet3d.UNet3D(base_filters=1, depth=3)
  cubes = np.random.default_rng(0).random((2, 16, 16, 8, 1), np.float32)
  network(cubes, training=True)  # moves the moving statistics
  return network


@pytest.fixture(name='model', scope='module')
def _model(network, tmp_path_factory):
  path = str(tmp_path_factory.mktemp('export') / 'model')
  export.export_encoder(network, path, {}, cube_shape=_CUBE)
  return path


@pytest.fixture(name='server', scope='module')
def _server(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('server')
  with serve_process.running(model, folder) as server:
    yield server


def _phantom(folder, index):
  patient = phantom.make_patient(3, index, (96, 80, 48))
  path = str(folder / f'{patient.scan_id}.mhd')
  reader.write_scan(path, patient.hu, patient.geometry)
  return path


def _real(folder):
  return shutil.copy(real_ct.path(), folder)


@pytest.mark.parametrize(
  ('make', 'stride'),
  [
    (lambda folder: _phantom(folder, 0), (32, 16, 16)),
    pytest.param(
      *(lambda folder: _phantom(folder, 1), (32, 32, 8)),
      marks=pytest.mark.long,
    ),
    pytest.param(_real, _CUBE, marks=pytest.mark.long),
  ],
  ids=['phantom', 'other phantom', 'real CT'],
)
def test_all_ways_agree(
  network, model, server, import_main, tmp_path, make, stride
):
  scans = tmp_path / 'scans'
  for split in ('train', 'validation'):
    (scans / split).mkdir(parents=True)
  path = make(scans / 'train')
  hu = reader.read_scan(path, cube_shape=_CUBE).hu
  places = embed.cube_places(hu.shape, _CUBE, stride)
  batches = [
    cubes[..., np.newaxis]
    for cubes in embed.cut_batches(hu, places, _CUBE, _BATCH)
  ]
  want = np.concatenate([_keras(network, cubes) for cubes in batches])
  assert len(want) > 7 and np.ptp(want, axis=0).max() > 1e-3
  encoder = encoders.load(model, signatures.CUBES)
  client = client_lib.Client(server.url)
  scan = client.embed_scan(path, stride)
  job = _run_job(import_main, model, scans, tmp_path / 'job', stride)
  for got in (scan.places, job.places):
    np.testing.assert_array_equal(got, places)
  for got in (
    embed.embed_scan(encoder, hu, stride).embeddings,
    scan.embeddings,
    np.concatenate([client.embed_cubes(cubes) for cubes in batches]),
    np.concatenate([_grpc(server, cubes) for cubes in batches]),
    job.embeddings,
  ):
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def _keras(network, cubes):
  """Clips and scales in float64, apart from the exported graph."""
  scaled = (np.clip(cubes.astype(np.float64), -1000, 1000) + 1000) / 2000
  return network.embed(scaled.astype(np.float32)).numpy()


def _grpc(server, cubes):
  tensor = kserve.InferInput('cubes', list(cubes.shape), 'INT16')
  tensor.set_data_from_numpy(cubes)
  request = kserve.InferRequest(
    'transvw', [tensor], parameters={'signature_name': 'embed_cubes_int16'}
  )
  with grpc.insecure_channel(server.grpc) as channel:
    stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
    answer = stub.ModelInfer(request.to_grpc())
  return kserve.InferResponse.from_grpc(answer).outputs[0].as_numpy()


def _run_job(import_main, model, scans, output, stride):
  job = import_main('beam_jobs.embed_scans')
  with flagsaver.flagsaver(
    scans=os.fspath(scans),
    model=model,
    output=os.fspath(output),
    stride=[str(step) for step in stride],
  ):
    job.main(['embed_scans'])
  (scan_id,) = embedding_files.list_scans(os.fspath(output))
  return embedding_files.read_scan(os.fspath(output), scan_id)
