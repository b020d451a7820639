"""The benchmark of embedding a scan, and the encoder in PyTorch it brings."""

import subprocess
import sys

import numpy as np
import pytest

from tests.tools import benchmark_serve_test
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.serving import embed as embed_lib

_CUBE = [16, 24, 8]


@pytest.fixture(name='embed')
def _embed(import_main):
  return import_main('tools.benchmark').load('embed')


@pytest.mark.parametrize('side', ['pytorch', 'pytorch_tuned'])
@pytest.mark.parametrize(
  ('precision', 'most'), [('float32', 1e-5), ('bfloat16', 0.03)]
)
def test_pytorch_gives_the_vectors_of_the_network(
  embed, tmp_path, monkeypatch, side, precision, most
):
  torch = pytest.importorskip('torch')
  monkeypatch.syspath_prepend(benchmark_serve_test.FOLDER)
  monkeypatch.delitem(sys.modules, 'torch_networks', raising=False)
  network = embed.make_network(2, _CUBE, str(tmp_path / 'weights.npz'))
  rng = np.random.default_rng(0)
  hu = rng.integers(-1500, 1500, (20, 30, 12)).astype(np.int16)
  settings = {
    'weights': str(tmp_path / 'weights.npz'),
    'cube': _CUBE,
    'stride': (8, 8, 8),
    'filters': 2,
    'batch': 3,
    'threads': torch.get_num_threads(),
    'side': side,
    'precision': precision,
    'compiled': False,
  }
  got = embed._make_pytorch(settings)(hu)
  places = embed_lib.cube_places(hu.shape, _CUBE, (8, 8, 8))
  (cubes,) = embed_lib.cut_batches(hu, places, _CUBE, 100)
  scaled = (np.clip(cubes.astype(np.float32), -1000, 1000) + 1000) / 2000
  want = network.embed(scaled[..., np.newaxis]).numpy()
  assert np.ptp(want, axis=0).max() > 1e-2
  difference = np.abs(got - want).max() / np.abs(want).max()
  assert (precision == 'bfloat16') == (difference > 1e-4)
  assert difference < most
  assert (schema.HU_MIN, schema.HU_MAX) == (-1000, 1000)


class _FakeSide:
  def __init__(self, *seconds):
    self._seconds = iter(seconds)

  def ask(self, command):
    assert command == 'time'
    return next(self._seconds)


def test_lines_of_speed(embed):
  sides = {
    'ours': _FakeSide(2.0, 1.0, 9.0),
    'pytorch': _FakeSide(4.0, 5.0, 3.0),
    'pytorch_tuned': _FakeSide(2.5, 2.5, 2.5),
  }
  assert list(embed._measure('embed_float32', sides, 10)) == [
    ('embed_float32', 5.0, 'cubes/s', 2.0, 'embed_float32_pytorch'),
    ('embed_float32_pytorch', 2.5, 'cubes/s', None, None),
    (
      *('embed_float32_pytorch_tuned', 4.0, 'cubes/s'),
      *(1.6, 'embed_float32_pytorch'),
    ),
  ]
  sides = {'ours': _FakeSide(2.0, 1.0, 9.0)}
  assert list(embed._measure('embed_float32', sides, 10)) == [
    ('embed_float32', 5.0, 'cubes/s', None, None)
  ]


def test_other_vectors_are_refused(embed):
  want = np.array([[3.0, 4.0], [0.0, 2.0]])
  near = want + [[0.0, 0.04], [0.0, 0.0]]
  rows = list(embed._compare('x', 'bfloat16', near, want))
  assert rows[0] == ('x_difference', pytest.approx(1.0), '%', None, None)
  cosine = (9 + 4 * 4.04) / (5 * np.hypot(3, 4.04))
  assert rows[1][1] == pytest.approx(1 - cosine)
  for precision, got in (
    ('float32', near),
    ('bfloat16', want[:, ::-1]),
    ('bfloat16', np.full((2, 2), np.nan)),
  ):
    with pytest.raises(errors.UserError, match='x gives other vectors'):
      list(embed._compare('x', precision, got, want))


def test_without_pytorch(embed, monkeypatch, capsys):
  monkeypatch.setattr(embed.importlib.util, 'find_spec', lambda name: None)
  assert list(embed._start_pytorch(None, 'float32', {})) == []
  assert 'embed_float32_pytorch is left out' in capsys.readouterr().err


@pytest.mark.long
def test_the_command():
  pytest.importorskip('torch')
  done = subprocess.run(
    [
      *(sys.executable, 'tools/benchmark.py', 'embed', '--base_filters=2'),
      *('--scan_size=48,48,24', '--size=32,32,16', '--stride=16,8,8'),
      *('--batch=4', '--repeats=1', '--notorch_compile'),
    ],
    cwd=benchmark_serve_test.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split(', ') for line in done.stdout.splitlines()]
  sides = ('', '_pytorch', '_pytorch_tuned')
  for precision in ('float32', 'bfloat16'):
    found = {row[0] for row in rows}
    assert found >= {f'embed_{precision}{side}' for side in sides}
  assert len(rows) == 2 * 3 + 2 * 2 + 3 * 2
