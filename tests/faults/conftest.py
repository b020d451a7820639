"""Prints the table of faults at the end, and starts processes warm."""

import pytest

from tests.faults import processes
from tests.faults import table


def pytest_terminal_summary(terminalreporter):
  """Prints the table."""
  if lines := table.lines():
    terminalreporter.section('faults')
    for line in lines:
      terminalreporter.write_line(line)


@pytest.fixture(name='server', scope='session')
def _server():
  with processes.Server() as server:
    yield server


@pytest.fixture(name='jobs', scope='session')
def _jobs(tmp_path_factory):
  from tests.faults import jobs

  return jobs.make_all(str(tmp_path_factory.mktemp('jobs')))


@pytest.fixture(name='undisturbed', scope='session')
def _undisturbed(jobs, tmp_path_factory):
  """What each job writes, started as a user does and left alone."""
  read = {}

  def find(name):
    if name not in read:
      output = str(tmp_path_factory.mktemp('undisturbed') / 'output')
      command = jobs[name].command(output)
      with processes.Process(command, f'{output}.log') as process:
        assert process.wait() == 0, process.text[-3000:]
      read[name] = jobs[name].read(output)
    return read[name]

  return find
