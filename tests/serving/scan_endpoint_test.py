"""The endpoint of scans by itself: which limits of time hold for a scan."""

import asyncio
import sys
import types

import numpy as np
import pytest

from tests.serving import serve_process
from transvw_tf2.serving import signatures

pytest.importorskip('kserve', reason=serve_process.SKIPPED)
from transvw_tf2.serving.server import settings as settings_lib


@pytest.fixture(name='scan_endpoint')
def _scan_endpoint(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['serve'])  # KServe reads it on import
  from transvw_tf2.serving.server import scan_endpoint

  return scan_endpoint


async def _answer_late(name, items):
  del name
  await asyncio.sleep(0.2)
  return [{signatures.EMBEDDING: np.zeros(2, np.float32)} for _ in items]


def test_a_scan_has_no_limit_of_small_requests(scan_endpoint):
  queue = types.SimpleNamespace(submit=_answer_late)
  model = scan_endpoint.kserve_model.BatchingModel('a', None, queue, 0.05)
  endpoint = scan_endpoint.ScanEndpoint(model, settings_lib.Settings())
  cubes = np.zeros((2, *serve_process.CUBE), np.int16)
  assert len(asyncio.run(endpoint._embed_cubes(cubes))) == 2
