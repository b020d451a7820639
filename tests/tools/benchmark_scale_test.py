"""The rehearsal at scale: its arithmetic by hand, and a tiny one."""

from absl.testing import flagsaver
import pytest

from transvw_tf2 import errors
from transvw_tf2.scans import phantom


@pytest.fixture(name='benchmark')
def _benchmark(import_main):
  return import_main('tools.benchmark')


@pytest.fixture(name='module')
def _module(benchmark):
  return benchmark.load('scale')


def test_steady_leaves_out_the_ends_of_a_pass(module):
  # 20 scans, one a second; the first two and the last two are much slower.
  ends = [10.0, 20.0, *(20.0 + one for one in range(1, 17)), 50.0, 60.0]
  assert module._steady(ends) == pytest.approx(1.0)


def test_steady_of_scans_that_end_at_once_is_that_of_the_pass(module):
  assert module._steady([2.0] * 8) == pytest.approx(2 / 8)


def test_forecast_of_other_amounts(module):
  build = module.Build(
    passes=(module.Pass(40, 0.5), module.Pass(40, 0.25)),
    start=10.0,
    seconds=60.0,  # 10 to start, 20 + 10 for the passes, 20 for the cubes
    memory=0,
    cubes=1000,
    scan_bytes=1.0,
  )
  assert build.forecast(40, 40, 1000) == pytest.approx(60.0)
  assert build.forecast(80, 40, 2000) == pytest.approx(10 + 40 + 10 + 40)
  lines = {
    name: (value, unit)
    for name, value, unit, *_ in module._extrapolate(build, 888)
  }
  # 44 words of 3 x 200 and 30 cubes of 256 KiB.
  assert lines['scale_888_disk'] == (
    pytest.approx(27_720 * 2**18 / 1e9),
    'GB',
  )
  want = 10 + 888 * 0.75 + 20 * 27_720 / 1000
  assert lines['scale_888_time'] == (pytest.approx(want / 3600), 'h')
  (hours, *_) = (
    value
    for name, value, *_ in module._extrapolate(build, 100_000)
    if name == 'scale_100000_time'
  )
  want = 10 + 100_000 * 0.5 + 44 * 230 * 0.25 + 20 * 27_720 / 1000
  assert hours == pytest.approx(want / 3600)


@pytest.mark.parametrize('scans', [['2', '1'], ['many'], ['0']])
def test_refuses_numbers(module, scans):
  with (
    flagsaver.flagsaver(scan_folder='somewhere', scans=scans),
    pytest.raises(errors.UserError, match='--scans is'),
  ):
    next(module.scale())


def test_refuses_too_few_scans(module, tmp_path):
  phantom.write_luna16(
    str(tmp_path / 'scans'), scans=3, size=(24, 24, 16), seed=1
  )
  with (
    flagsaver.flagsaver(scan_folder=str(tmp_path / 'scans'), scans=['4']),
    pytest.raises(errors.UserError, match='has 3 scans'),
  ):
    next(module.scale())


@pytest.mark.long
def test_a_tiny_rehearsal(benchmark, module, tmp_path):
  del module
  folder = str(tmp_path / 'scans')
  phantom.write_luna16(folder, scans=12, size=(96, 96, 48), seed=1)
  with flagsaver.flagsaver(
    scan_folder=folder, scans=['8', '12'], processes=['1', '2'], words=2
  ):
    rows = [line.split(', ') for line in benchmark.lines('scale')]
  values = {row[0]: float(row[1]) for row in rows}
  for name in ('8', '12'):
    sequential = values[f'scale_{name}_sequential']
    for workers in '12':
      for number in '12':
        (row,) = (
          row
          for row in rows
          if row[0] == f'scale_{name}_{workers}_pass_{number}'
        )
        assert float(row[3]) == pytest.approx(
          float(row[1]) / sequential, rel=1e-2
        )
      assert values[f'scale_{name}_{workers}_total'] > 0
      assert values[f'scale_{name}_{workers}_memory'] > 0.1
  assert values['scale_forecast_12'] > 0
  assert values['scale_100000_read'] == pytest.approx(
    100_000 / 888 * values['scale_888_read'], rel=1e-2
  )
