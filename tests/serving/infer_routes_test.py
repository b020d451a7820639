"""Requests of V2 are decoded beside the event loop, not on it."""

import asyncio
import sys
import threading

import pytest

from tests.serving import serve_process

pytest.importorskip('kserve', reason=serve_process.SKIPPED)
import fastapi
import httpx

from transvw_tf2.serving.server import error_answers
from transvw_tf2.serving.server import request_errors


class _Plane:
  """Refuses all, and keeps what it was asked to decode and in which thread."""

  def __init__(self):
    self.asked = []

  def decode(self, body, headers, protocol_version, model_name):
    thread = threading.current_thread()
    self.asked.append((body, protocol_version, model_name, thread))
    raise request_errors.RequestError(headers['content-type'])


@pytest.mark.parametrize('path', ['a/infer', 'a/versions/1/infer'])
def test_decodes_in_a_thread(monkeypatch, path):
  monkeypatch.setattr(sys, 'argv', ['serve'])  # KServe reads it on import
  from transvw_tf2.serving.server import run

  plane, app = _Plane(), fastapi.FastAPI()
  app.include_router(run._infer_routes(plane))
  error_answers.add_handlers(app)

  async def ask():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as client:
      return await client.post('http://x/v2/models/' + path, json={'inputs': 1})

  answer = asyncio.run(ask())
  assert (answer.status_code, answer.json()) == (
    400,
    {'error': 'application/json'},
  )
  ((body, protocol, name, thread),) = plane.asked
  assert (protocol, name) == ('v2', 'a')
  assert body.replace(b' ', b'') == b'{"inputs":1}'
  assert thread is not threading.main_thread()
