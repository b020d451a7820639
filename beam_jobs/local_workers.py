"""Worker processes of the FnApiRunner whose death ends the job.

Beam itself waits for ever for a worker that was killed, by the kernel where
memory is short for example; and its workers go on when the job was killed.
"""

import os
import shlex
import subprocess
import threading
from typing import ClassVar

from absl import logging
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from google.protobuf import json_format
from google.protobuf import text_format

# Begins what an instruction to a dead worker is answered with.
ENDED = 'a worker process of Beam ended unexpectedly'

_BEAMS_MODULE = 'apache_beam.runners.worker.sdk_worker_main'
_OWN_MODULE = 'beam_jobs.local_worker'


class LocalWorkerHandler(worker_handlers.SubprocessSdkWorkerHandler):
  """Starts a worker process, and answers for it when it has died."""

  # Of all pipelines of this process.
  _started: ClassVar[list['LocalWorkerHandler']] = []
  # A line each on those that were killed.
  killed: ClassVar[list[str]] = []
  _is_over = False

  def start_worker(self):
    command = shlex.split(self._worker_command_line.decode())
    if command[-1] == _BEAMS_MODULE:
      command[-1:] = [_OWN_MODULE, str(os.getpid())]
    as_text = text_format.MessageToString
    options = self.provision_info.provision_info.pipeline_options
    with worker_handlers.SUBPROCESS_LOCK:
      self._process = subprocess.Popen(
        command,
        env={
          **os.environ,
          'CONTROL_API_SERVICE_DESCRIPTOR': as_text(
            self.control_api_service_descriptor()
          ),
          'LOGGING_API_SERVICE_DESCRIPTOR': as_text(
            self.logging_api_service_descriptor()
          ),
          'PIPELINE_OPTIONS': json_format.MessageToJson(options),
          'WORKER_ID': self.worker_id,
        },
      )
    self._started.append(self)
    self.worker_thread = threading.Thread(name='run_worker', target=self._wait)
    self.worker_thread.start()

  def _wait(self):
    code = self._process.wait()
    self._started.remove(self)
    if code == 0:
      return
    line = f'{ENDED} (exit code {code})'
    logging.info('%s: %s', self.worker_id, line)
    if code < 0 and not self._is_over:
      self.killed.append(line)
    self._answer(line)
    # The job is over; what the others do is of no use.
    for other in list(self._started):
      if other._grpc_server is self._grpc_server:
        other._is_over = True
        other._process.kill()

  def _answer(self, line):
    """Answers all instructions, given and to come, with an error."""
    connection = self.control_conn
    push = connection.push

    def respond(instruction_id):
      return beam_fn_api_pb2.InstructionResponse(
        instruction_id=instruction_id, error=line
      )

    def refuse(request):
      if not isinstance(request, beam_fn_api_pb2.InstructionRequest):
        return push(request)  # the mark of the end
      return worker_handlers.ControlFuture(
        request.instruction_id, respond(request.instruction_id)
      )

    connection.push = refuse
    for instruction_id, future in list(connection._futures_by_id.items()):
      future.set(respond(instruction_id))


def take_killed() -> str:
  """Returns a line on a worker killed since this was asked last, or ''."""
  lines, LocalWorkerHandler.killed[:] = LocalWorkerHandler.killed[:], []
  return lines[0] if lines else ''


def register() -> None:
  """Lets the FnApiRunner of this process use such workers."""
  if os.name == 'posix':
    worker_handlers.WorkerHandler.register_environment(
      python_urns.SUBPROCESS_SDK, bytes
    )(LocalWorkerHandler)
