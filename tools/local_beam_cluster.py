r"""Runs a Beam cluster on this machine: a job service and pools of workers.

  python tools/local_beam_cluster.py --workers 2

prints the options that send a job there, and runs until Ctrl-C or SIGTERM, when
it stops all that it started. The service and each worker are processes of their
own that speak Beam's portable protocol, as Flink, Spark and Dataflow do; what a
job does to scans is done in no process but the workers'.

Workers run this Python in the working directory of this command. Job and
workers leave files for each other, so they need the same file system. Where a
worker is killed, Beam would wait for it for ever: here the cluster ends, and
with it the job. Beam's services ask for no password, and those of a job listen
on all addresses of this machine: not for a network that strangers use.
"""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.worker import worker_pool_main
import grpc

from transvw_tf2 import errors
from transvw_tf2 import mains

_WORKERS = flags.DEFINE_integer(
  'workers', 2, 'Pools, each with one worker.', lower_bound=1
)
_JOB_PORT = flags.DEFINE_integer('job_port', 8099, 'Of the job service.')
_WORKER_PORT = flags.DEFINE_integer('worker_port', 50000, 'Of the workers.')
_POOL_PORT = flags.DEFINE_integer(
  'pool_port', None, 'Run a pool alone; this command starts its pools so.'
)

# Until all pools answer: they import Beam first.
_START_SECONDS = 120.0
_STOP_SECONDS = 5.0
_WATCH_SECONDS = 0.2


class _Pools(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
  """Hands each request for a worker to the next pool.

  A job names one address of workers. On a cluster every machine has its pool
  there; on one machine only one can have it.
  """

  def __init__(self, addresses: Sequence[str]):
    self._next = itertools.cycle(
      beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(
        grpc.insecure_channel(address)
      )
      for address in addresses
    )
    self._pool_of = {}

  def StartWorker(self, request, context):
    del context
    pool = self._pool_of[request.worker_id] = next(self._next)
    return pool.StartWorker(request)

  def StopWorker(self, request, context):
    del context
    return self._pool_of.pop(request.worker_id).StopWorker(request)


def _make_job_class(workers: int) -> type[local_job_service.BeamJob]:
  class Job(local_job_service.BeamJob):
    """A job with so many workers; Beam's has one, whatever its options."""

    def _invoke_runner(self):
      runner = fn_runner.FnApiRunner(provision_info=self._provision_info)
      runner._num_workers = workers
      return runner.run_via_runner_api(
        self._pipeline_proto, self.pipeline_options()
      )

  return Job


def _check_free(port: int) -> None:
  # gRPC would share a port that another server has.
  with socket.socket() as one:
    try:
      one.bind(('127.0.0.1', port))
    except (OSError, OverflowError) as error:
      raise errors.UserError(
        f'port {port} cannot be used ({error}); give another --job_port or'
        ' --worker_port'
      ) from error


def _find_free_ports(number: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _start_pools(ports: Sequence[int]):
  """Starts pools; stops them and their workers when it is left."""
  # A pool starts its workers by the name `python`.
  path = os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']
  pools = []
  try:
    for port in ports:
      pools.append(
        subprocess.Popen(
          [sys.executable, os.path.abspath(__file__), f'--pool_port={port}'],
          env=os.environ | {'PATH': path, 'TF_CPP_MIN_LOG_LEVEL': '2'},
          # In a group of its own with its workers, to be stopped together.
          start_new_session=True,
        )
      )
    yield pools
  finally:
    _signal_groups(pools, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    for pool in pools:
      with contextlib.suppress(subprocess.TimeoutExpired):
        pool.wait(max(0.0, end - time.monotonic()))
    # Workers that are busy, whose pool may be gone.
    _signal_groups(pools, signal.SIGKILL)


def _signal_groups(pools, number: int) -> None:
  for pool in pools:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(pool.pid, number)


def _wait_for(
  pools: Sequence[subprocess.Popen],
  addresses: Sequence[str],
  ended: threading.Event,
) -> None:
  """Waits until all pools answer, or the event is set.

  Raises:
    UserError: one does not.
  """
  end = time.monotonic() + _START_SECONDS
  for pool, address in zip(pools, addresses, strict=True):
    with grpc.insecure_channel(address) as channel:
      ready = grpc.channel_ready_future(channel)
      while not ready.done() and not ended.wait(0.05):
        if pool.poll() is not None or time.monotonic() > end:
          raise errors.UserError(
            f'the workers at {address} did not start; what they wrote is above'
          )


def _serve(servicer, port: int) -> grpc.Server:
  server = grpc.server(concurrent.futures.ThreadPoolExecutor())
  beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(
    servicer, server
  )
  server.add_insecure_port(f'localhost:{port}')
  server.start()
  return server


def _run_pool(port: int) -> int:
  """Serves workers until one is killed; returns the exit code."""
  pool = worker_pool_main.BeamFnExternalWorkerPoolServicer(use_process=True)
  server = _serve(pool, port)
  while True:
    time.sleep(_WATCH_SECONDS)
    for name, worker in list(pool._worker_processes.items()):
      code = worker.poll()
      if code is not None:
        # It comes to an end by itself with its job.
        pool._worker_processes.pop(name, None)
      if code is not None and code < 0:
        server.stop(0)
        return 1


def main(argv):
  del argv
  if _POOL_PORT.value is not None:
    return _run_pool(_POOL_PORT.value)
  ended = threading.Event()
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: ended.set())
  for port in (_JOB_PORT.value, _WORKER_PORT.value):
    _check_free(port)
  ports = _find_free_ports(_WORKERS.value)
  addresses = [f'localhost:{port}' for port in ports]
  with _start_pools(ports) as pools:
    _wait_for(pools, addresses, ended)
    front = _serve(_Pools(addresses), _WORKER_PORT.value)
    service = local_job_service.LocalJobServicer(
      beam_job_type=_make_job_class(_WORKERS.value)
    )
    service.start_grpc_server(_JOB_PORT.value)
    print(
      f'{_WORKERS.value} workers wait for jobs with the options\n'
      f'--runner=PortableRunner --job_endpoint=localhost:{_JOB_PORT.value}'
      ' --environment_type=EXTERNAL'
      f' --environment_config=localhost:{_WORKER_PORT.value}',
      flush=True,
    )
    lost = False
    while not lost and not ended.wait(_WATCH_SECONDS):
      lost = any(pool.poll() is not None for pool in pools)
    front.stop(0)
    service.stop()
  if lost:
    print(
      'error: a worker was killed, such as for want of memory; start the'
      ' cluster and the job again, or with fewer --workers',
      file=sys.stderr,
      flush=True,
    )
  # Threads of a job that was running would keep this process.
  os._exit(int(lost))


if __name__ == '__main__':
  mains.run(main)
