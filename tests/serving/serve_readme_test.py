"""The commands of the README's section on serving, on a tiny encoder."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.serving import serve_process
from transvw_tf2.scans import geometry
from transvw_tf2.scans import reader

pytest.importorskip('kserve', reason=serve_process.SKIPPED)

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def _blocks():
  with open(os.path.join(_ROOT, 'README.md'), encoding='utf-8') as file:
    section = re.split(r'\n#{3,4} ', file.read().partition('#### Serving')[2])[
      0
    ]
  return re.findall(r'```\n(.*?)```', section, re.DOTALL)


def _write_requests(folder, hu):
  """Writes the files that the commands name; returns what HEADER_BYTES is."""
  rows = {'instances': hu.tolist()}
  (folder / 'ROWS.json').write_text(json.dumps(rows))
  tensor = {'name': 'cubes', 'shape': list(hu.shape)}
  tensors = [tensor | {'datatype': 'FP32', 'data': hu.ravel().tolist()}]
  (folder / 'TENSORS.json').write_text(json.dumps({'inputs': tensors}))
  size = {'parameters': {'binary_data_size': hu.nbytes}, 'datatype': 'INT16'}
  header = json.dumps(
    {
      'parameters': {'signature_name': 'embed_cubes_int16'},
      'inputs': [tensor | size],
    }
  ).encode()
  (folder / 'HEADER_AND_CUBES').write_bytes(header + hu.tobytes())
  return str(len(header))


@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
def test_the_commands(tmp_path):
  model = serve_process.export_encoder(tmp_path / 'ENCODER')
  hu = serve_process.cubes()
  scaled = (np.clip(hu.astype(np.float32), -1000, 1000) + 1000) / 2000
  want = model.embed(scaled).numpy()
  header_bytes = _write_requests(tmp_path, hu)
  size = (19, 13, 10)
  scan = np.random.default_rng(0).integers(-1024, 2000, size).astype(np.int16)
  reader.write_scan(
    str(tmp_path / 'SCAN.nii.gz'), scan, geometry.Geometry(size)
  )
  start, curls, python, stub = _blocks()
  assert 'python -m transvw_tf2.serve --model ENCODER --port 8501' in start
  with serve_process.running(tmp_path / 'ENCODER', tmp_path) as server:
    answers = []
    for command in re.split(r'(?<!\\)\n', curls.strip()):
      command = command.replace('http://127.0.0.1:8501', server.url)
      command = command.replace('HEADER_BYTES', header_bytes)
      done = subprocess.run(
        ['bash', '-c', command.replace('32,32,16', '4,3,2')],
        capture_output=True,
        cwd=tmp_path,
        check=True,
      )
      answers.append(done.stdout)
    rows, tensors, binary, nothing = answers
    got = [
      json.loads(rows)['predictions'],
      *(json.loads(one)['outputs'][0]['data'] for one in (tensors, binary)),
    ]
    for one in got:
      np.testing.assert_allclose(np.reshape(one, want.shape), want, atol=1e-5)
    assert not nothing
    with np.load(tmp_path / 'SCAN.npz') as arrays:
      assert set(arrays) == {'places', 'embeddings', 'mean'}
    names = {'cubes': hu}
    code = python.replace('http://127.0.0.1:8501', server.url)
    code = code.replace('SCAN.nii.gz', str(tmp_path / 'SCAN.nii.gz'))
    exec(code.replace('(32, 32, 16)', '(4, 3, 2)'), names)
    np.testing.assert_allclose(names['vectors'], want, atol=1e-5)
    exec(stub.replace('127.0.0.1:8500', server.grpc), names := {'cubes': hu})
    np.testing.assert_allclose(names['vectors'], want, atol=1e-5)
