"""The endpoint of scans by itself: which limits of time hold for a scan."""

import asyncio
import sys
import threading
import types

import numpy as np
import pytest

from tests.serving import serve_process
from transvw_tf2.serving import signatures

pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import fastapi

from transvw_tf2.serving.server import request_errors
from transvw_tf2.serving.server import settings as settings_lib


@pytest.fixture(name='scan_endpoint')
def _scan_endpoint(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['serve'])  # KServe reads it on import
  from transvw_tf2.serving.server import scan_endpoint

  return scan_endpoint


async def _answer_late(name, items, wait):
  del name
  assert wait  # it is not refused once it is in
  await asyncio.sleep(0.2)
  return [{signatures.EMBEDDING: np.zeros(2, np.float32)} for _ in items]


def test_a_scan_has_no_limit_of_small_requests(scan_endpoint):
  queue = types.SimpleNamespace(submit=_answer_late)
  model = scan_endpoint.kserve_model.BatchingModel('a', None, queue, 0.05)
  endpoint = scan_endpoint.ScanEndpoint(model, settings_lib.Settings())
  cubes = np.zeros((2, *serve_process.CUBE), np.int16)
  assert len(asyncio.run(endpoint._embed_cubes(cubes))) == 2


def _answer_now(answer):
  async def submit(name, items, wait):
    del name
    assert not wait
    return [answer] * len(items)

  return submit


@pytest.mark.parametrize('form', ['instances', 'inputs'])
def test_answers_are_encoded_beside_the_event_loop(
  scan_endpoint, monkeypatch, form
):
  kserve_model = scan_endpoint.kserve_model
  threads = []
  name = f'encode_{"rows" if form == "instances" else "columns"}'
  whole = getattr(kserve_model.rest_v1, name)

  def note(results):
    threads.append(threading.current_thread())
    return whole(results)

  monkeypatch.setattr(kserve_model.rest_v1, name, note)
  tensor = types.SimpleNamespace(
    name='x', dtype=np.dtype('float32'), shape=(2,)
  )
  signature = types.SimpleNamespace(name='s', inputs={'x': tensor})
  served = types.SimpleNamespace(signature=lambda _: signature)
  queue = types.SimpleNamespace(
    submit=_answer_now({'y': np.ones(2, np.float32)}),
    check_count=lambda _: None,
  )
  model = kserve_model.BatchingModel('a', served, queue, 5)
  found = asyncio.run(model.predict({form: [[1.0, 2.0]]}))
  assert found['predictions' if form == 'instances' else 'outputs'] == [[1, 1]]
  assert threads[0] is not threading.main_thread()


def test_strings_nested_without_end_are_refused(scan_endpoint):
  value = 'text'
  for _ in range(100_000):
    value = [value]
  tensor = types.SimpleNamespace(name='bytes', dtype=np.dtype(object), shape=())
  with pytest.raises(request_errors.RequestError, match='lists within lists'):
    scan_endpoint.kserve_model.rest_v1._to_array(value, tensor)
  while isinstance(value, list):  # freed one by one
    (value,) = value


def _request(blocks):
  """Returns an upload of blocks, each after so many seconds, without an end."""

  async def receive():
    seconds, block = blocks.pop(0) if blocks else (60, b'')
    await asyncio.sleep(seconds)
    return {'type': 'http.request', 'body': block, 'more_body': bool(blocks)}

  scope = {'type': 'http', 'query_string': b'', 'headers': []}
  return fastapi.Request(scope, receive)


def test_an_upload_that_stalls_gives_its_place_back(scan_endpoint, monkeypatch):
  monkeypatch.setattr(scan_endpoint, '_SILENCE_S', 0.1)
  shape = (*serve_process.CUBE, 1)
  inputs = {signatures.CUBES: types.SimpleNamespace(shape=shape)}
  embed_cubes = types.SimpleNamespace(inputs=inputs)
  served = types.SimpleNamespace(
    signatures={signatures.EMBED_CUBES_INT16: embed_cubes}
  )
  model = types.SimpleNamespace(name='a', model=served)
  settings = settings_lib.Settings(max_scans=1, scan_timeout_s=5)
  endpoint = scan_endpoint.ScanEndpoint(model, settings)
  for _ in range(2):
    with pytest.raises(
      request_errors.RequestError, match='nothing of'
    ) as found:
      asyncio.run(endpoint.embed('a', _request([(0, b'1'), (9, b'2')])))
    assert found.value.status == 408


def test_a_slow_upload_is_whole(scan_endpoint, monkeypatch):
  monkeypatch.setattr(scan_endpoint, '_SILENCE_S', 0.5)
  endpoint = scan_endpoint.ScanEndpoint(None, settings_lib.Settings())
  blocks = [(0.2, b'%d' % at) for at in range(4)]
  with asyncio.run(endpoint._receive(_request(blocks))) as file:
    file.seek(0)
    assert file.read() == b'0123'
