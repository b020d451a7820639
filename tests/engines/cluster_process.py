"""A Beam cluster as a process: `tools/local_beam_cluster.py`."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """A cluster that runs.

  Attributes:
    process: of the tool.
    options: what sends a job there.
  """

  process: subprocess.Popen
  options: tuple[str, ...]


def free_ports(number: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]


def command(*arguments: str) -> list[str]:
  return [sys.executable, 'tools/local_beam_cluster.py', *arguments]


@contextlib.contextmanager
def start(log: pathlib.Path) -> Iterator[Cluster]:
  """Starts a cluster of two workers; stops it when it is left."""
  job, worker = free_ports(2)
  with log.open('wb') as file:
    process = subprocess.Popen(
      command(f'--job_port={job}', f'--worker_port={worker}'),
      stdout=subprocess.PIPE,
      stderr=file,
      text=True,
      cwd=_ROOT,
    )
  with process:
    try:
      lines = [process.stdout.readline() for _ in range(2)]
      assert lines[0].startswith('2 workers wait'), log.read_text()
      yield Cluster(process, tuple(lines[1].split()))
    finally:
      process.send_signal(signal.SIGTERM)
      process.wait(60)
