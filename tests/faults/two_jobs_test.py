"""Two jobs on one output at the same time: one does it, the other says so."""

import pytest

from tests.faults import jobs as jobs_lib
from tests.faults import processes
from tests.faults import table

pytestmark = pytest.mark.long

_TIMES = 2
# What the one that is refused says, or that it came when all was done.
_REFUSED = ('another run is writing to', 'exists; give another')


@pytest.mark.parametrize(
  'name',
  [
    'discover_words',
    'tfds build transvw_luna16',
    'tfds build luna16_nodules',
    'train --deterministic',
    'embed_scans',
  ],
)
def test_two_jobs_on_one_output(jobs, undisturbed, server, tmp_path, name):
  job, want = jobs[name], undisturbed(name)
  for number in range(_TIMES):
    output = str(tmp_path / f'{number}')
    command = job.command(output)
    with (
      table.trial(f'two jobs on one output: {name}') as seen,
      processes.Process(command, f'{output}.1.log', server) as first,
      processes.Process(command, f'{output}.2.log', server) as second,
    ):
      codes = {one: one.wait() for one in (first, second)}
      assert 0 in codes.values(), first.text[-2000:] + second.text[-2000:]
      for one, code in codes.items():
        if code:
          line = one.last_line
          assert any(text in line for text in _REFUSED), one.text[-3000:]
          seen.append(f'`{line.replace(output, "OUTPUT")}`')
      jobs_lib.check_same(want, job.read(output))
