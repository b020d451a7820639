"""Damaged and hostile files end in a reason: some cases of every reader.

`python -m tests.fuzz` runs as many as are asked for, and prints a table.
"""

import pytest

from tests.fuzz import bad_targets
from tests.fuzz import harness

pytest.importorskip('kserve', reason="it is in '.[dev]'")

from tests.fuzz import worker

_TARGETS = worker.load_targets()
_FEW = 6
_BAD = 16
_MANY = 5000


def _check(outcomes):
  wrong = [
    f'{one.name}, case {number}: {text}'
    for one in outcomes
    for number, text in one.failures.items()
  ]
  assert not wrong, '\n'.join(wrong)
  assert all(one.rejected for one in outcomes), outcomes
  # Some damage does not matter.
  assert any(one.rejected < one.cases for one in outcomes)


def test_a_few_cases_of_every_reader():
  outcomes = harness.run(list(_TARGETS), _FEW)
  assert sum(one.cases for one in outcomes) == _FEW * len(_TARGETS)
  _check(outcomes)


@pytest.mark.long
@pytest.mark.parametrize('name', _TARGETS)
def test_many_cases(name):
  groups = None if _TARGETS[name].heavy else worker.LIGHT_GROUPS
  _check(harness.run([name], _MANY, groups=groups))


def test_cases_are_the_same_each_time(tmp_path):
  target = _TARGETS['nrrd']
  place = worker.Place(str(tmp_path))
  seeds = worker.make_seeds(target, place)
  cases = [worker.make_case(target, seeds, 1, number) for number in range(20)]
  again = [worker.make_case(target, seeds, 1, number) for number in range(20)]
  assert cases == again
  assert len({repr(one) for one in cases}) > 15
  assert cases != [
    worker.make_case(target, seeds, 2, number) for number in range(20)
  ]


@pytest.mark.parametrize(
  'name',
  [
    name if 'hang' not in name else pytest.param(name, marks=pytest.mark.long)
    for name in bad_targets.SAYS
  ],
)
def test_what_no_reader_may_do_is_found(name):
  (outcome,) = harness.run([name], _BAD, groups=('bad_targets',))
  assert outcome.cases == _BAD
  says = bad_targets.SAYS[name]
  if says is None:
    assert 0 < outcome.rejected < _BAD and not outcome.failures
  else:
    # The others are read as if nothing had been.
    assert 0 < len(outcome.failures) < _BAD
    assert all(says in text for text in outcome.failures.values()), outcome
