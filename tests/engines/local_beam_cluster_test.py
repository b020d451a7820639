"""Jobs on the workers of a local cluster, which are other processes."""

import os
import signal
import socket
import subprocess
import threading
import time

import apache_beam as beam
from apache_beam.options import pipeline_options
import psutil
import pytest

from beam_jobs import pipelines
from tests.engines import cluster_process
from transvw_tf2 import errors

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


def _tell_process(number):
  pipelines.count('numbers', number)
  return f'{os.getpid()} {os.getppid()}'


def _refuse(number):
  raise errors.UserError(f'number {number} is of no use')


def _run(cluster, transform):
  options = pipeline_options.PipelineOptions(list(cluster.options))
  return pipelines.run(transform, options=options)


def test_two_processes_of_two_pools_share_the_work(cluster, tmp_path):
  counters = _run(
    cluster,
    beam.Create(range(20))
    | beam.Reshuffle()
    | beam.Map(_tell_process)
    | beam.io.WriteToText(str(tmp_path / 'part')),
  )
  assert counters == {'numbers': sum(range(20))}
  lines = [
    line for path in tmp_path.iterdir() for line in path.read_text().split('\n')
  ]
  pairs = {tuple(map(int, line.split())) for line in lines if line}
  assert len(pairs) == 2
  workers, pools = map(set, zip(*pairs, strict=True))
  assert len(workers) == len(pools) == 2
  # Nothing ran here, nor in the process of the job service.
  children = {one.pid for one in psutil.Process(cluster.process.pid).children()}
  assert pools <= children
  assert not workers & {os.getpid(), cluster.process.pid}


@pytest.mark.long
def test_what_a_worker_refuses_is_one_line_here(cluster):
  with pytest.raises(errors.UserError) as info:
    _run(cluster, beam.Create([7]) | beam.Map(_refuse))
  assert str(info.value) == 'number 7 is of no use'


@pytest.mark.long
def test_a_defect_in_a_worker_is_no_line_for_users(cluster):
  with pytest.raises(RuntimeError, match='ZeroDivisionError'):
    _run(cluster, beam.Create([0]) | beam.Map(lambda number: 1 / number))


@pytest.mark.long
def test_workers_that_are_not_there_are_one_line(cluster):
  (port,) = cluster_process.free_ports(1)
  wrong = f'--environment_config=localhost:{port}'
  options = pipeline_options.PipelineOptions([*cluster.options[:-1], wrong])
  with pytest.raises(errors.UserError, match=r'(?s)^Beam.*check[^\n]*$'):
    pipelines.run(beam.Create([1]) | beam.Map(str), options=options)


@pytest.mark.long
def test_a_port_that_is_taken_is_one_line():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    done = subprocess.run(
      cluster_process.command(f'--job_port={port}'),
      capture_output=True,
      text=True,
      cwd=_ROOT,
      check=False,
    )
  assert done.returncode == 1
  assert f'error: port {port} cannot be used' in done.stderr.splitlines()[-1]


def _wait(number):
  time.sleep(1)
  return number


@pytest.mark.long
# Beam's thread that reads messages.
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)
def test_a_worker_that_is_killed_ends_cluster_and_job(tmp_path):
  """Beam would wait for it for ever."""
  log = tmp_path / 'log'
  with cluster_process.start(log) as cluster:
    found = []

    def kill():
      tool = psutil.Process(cluster.process.pid)
      while not found:
        for pool in tool.children():
          found.extend(pool.children())
        time.sleep(0.1)
      time.sleep(3)
      found[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(errors.UserError, match=r"^Beam's job service or a wor"):
      _run(
        cluster,
        beam.Create(range(600)) | beam.Reshuffle() | beam.Map(_wait),
      )
    thread.join()
    assert cluster.process.wait(60) == 1
  last = log.read_text().splitlines()[-1]
  assert last.startswith('error: a worker was killed')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
def test_a_signal_stops_all_processes(tmp_path, number):
  with cluster_process.start(tmp_path / 'log') as cluster:
    _run(cluster, beam.Create([1]) | beam.Reshuffle() | beam.Map(str))
    started = psutil.Process(cluster.process.pid).children(recursive=True)
    assert len(started) >= 2
    cluster.process.send_signal(number)
    assert cluster.process.wait(60) == 0
    _, alive = psutil.wait_procs(started, timeout=10)
  assert not alive
