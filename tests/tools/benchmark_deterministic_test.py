"""The benchmark of `--deterministic` on a tiny data set."""

from absl.testing import flagsaver
import pytest

from tests.training import tiny_data
from transvw_tf2 import errors


@pytest.fixture(name='module')
def _module(import_main):
  return import_main('tools.benchmark').load('deterministic')


def test_the_ratio_is_that_of_medians(module, monkeypatch):
  speeds = iter([[10.0, 30.0], [5.0, 6.0], [20.0, 1.0], [4.0, 7.0]])
  calls = []

  def train(*arguments):
    calls.append(arguments)
    return next(speeds)

  monkeypatch.setattr(module, '_train', train)
  with flagsaver.flagsaver(data='somewhere', repeats=2):
    rows = list(module.deterministic())
  assert calls == [(), ('--deterministic',)] * 2
  assert [row[1] for row in rows] == [15.0, 5.5]
  assert rows[1][3:] == (pytest.approx(5.5 / 15), 'train_without')


def test_data_is_asked_for(module):
  with pytest.raises(errors.UserError, match='needs --data'):
    list(module.deterministic())


@pytest.mark.long
def test_it_trains_and_tells_what_went_wrong(module, tmp_path):
  data = tiny_data.write(tmp_path)
  with flagsaver.flagsaver(
    data=data, epochs=2, repeats=1, gin_param=list(tiny_data.GIN)
  ):
    assert [row[1] > 0 for row in module.deterministic()] == [True, True]
  with (
    flagsaver.flagsaver(data=str(tmp_path / 'none')),
    pytest.raises(errors.UserError, match='does not exist'),
  ):
    list(module.deterministic())
