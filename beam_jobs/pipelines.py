"""Runs Beam pipelines: which engine takes them, and what they counted."""

import errno
import os
import re

from absl import logging
import apache_beam as beam
from apache_beam import metrics
from apache_beam.options import pipeline_options
from apache_beam.runners import runner as beam_runner
import grpc

from beam_jobs import local_workers
from transvw_tf2 import errors

local_workers.register()

# All counters of this project.
NAMESPACE = 'transvw'

# What a worker raised, in the traceback that an engine hands on as text, and
# what Beam adds to it.
_OWN_ERROR = re.compile(r'^transvw_tf2\.[\w.]+: (.+)$', re.MULTILINE)
_ADDED = re.compile(r' \[while running .*')
# What gRPC says of a process that is not there, or no longer; or Beam's engine,
# if it is the first to see that.
_LOST = re.compile(r'details = "(.*)"|(Channel closed prematurely)')
# What a disk says that is full, or broken, or cannot be written.
_OF_THE_DISK = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
  *(errno.EIO, errno.EROFS, errno.EACCES),
)


def count(name: str, amount: int = 1) -> None:
  """Adds to a counter, from inside a DoFn."""
  metrics.Metrics.counter(NAMESPACE, name).inc(amount)


def prefer_local_engine(pipeline: beam.Pipeline) -> None:
  """Gives a pipeline whose user named no engine to the FnApiRunner.

  Beam's own default, the DirectRunner, first tries to download another engine
  from the internet and comes to the FnApiRunner only when that fails.

  Raises:
    UserError: the engine would lose results without a word.
  """
  if type(pipeline.runner).__name__ == 'DaskRunner':
    raise errors.UserError(
      "--runner is Beam's DaskRunner, which loses what a step gives at the end"
      ' of its work, all that is written among it (Beam 2.77); take FnApiRunner'
      ' or PortableRunner'
    )
  named = pipeline.options.view_as(pipeline_options.StandardOptions).runner
  if not named and isinstance(pipeline.runner, beam.runners.DirectRunner):
    pipeline.runner = beam_runner.create_runner('FnApiRunner')


def run(
  transform: beam.PTransform,
  *,
  runner: beam_runner.PipelineRunner | None = None,
  options: pipeline_options.PipelineOptions | None = None,
) -> dict[str, int]:
  """Runs a transform of its own pipeline to the end.

  Args:
    transform: takes the pipeline itself, such as `beam.Create(...) | ...`.
    runner: the engine; None takes the one that `options` names, or the
      FnApiRunner.
    options: Beam options.

  Returns:
    The counters by name, sorted; they are logged as well.

  Raises:
    UserError: an unknown runner, options that do not fit together, an engine
      that cannot be reached, a worker process that was killed, a disk that is
      full or cannot be read, or what a worker raised of this kind.
  """
  try:
    pipeline = beam.Pipeline(runner=runner, options=options)
  except (ValueError, ImportError) as error:
    raise errors.UserError(f'Beam options do not fit: {error}') from error
  prefer_local_engine(pipeline)
  local_workers.take_killed()  # of a pipeline before
  try:
    with pipeline:
      _ = pipeline | transform
  except Exception as error:
    if line := _explain(error):
      raise errors.UserError(line) from error
    raise
  counters = _counters(pipeline.result)
  for name, value in counters.items():
    logging.info('%s: %d', name, value)
  return counters


def _explain(error: Exception) -> str:
  """Returns a line for a user, or '' for a defect."""
  if isinstance(error, errors.UserError):
    return _ADDED.sub('', str(error))
  text = str(error)
  if found := _OWN_ERROR.findall(text):
    return _ADDED.sub('', found[-1])
  # The error may be of a connection that broke first.
  line = local_workers.take_killed()
  if not line and local_workers.ENDED in text:
    line = text[text.index(local_workers.ENDED) :].splitlines()[0]
  if line:
    return (
      f'{line}: it was killed, perhaps because memory was short; the same'
      ' command again goes on, or starts anew'
    )
  for line in reversed(text.splitlines()):
    if any(os.strerror(number) in line for number in _OF_THE_DISK):
      line = _ADDED.sub('', line).strip()
      return f'{line}: mend that, and give the same command again'
  if isinstance(error, NotImplementedError) and 'job_endpoint' in text:
    return f'Beam options do not fit: {error}'
  found = _LOST.findall(text)
  if found or isinstance(error, grpc.FutureTimeoutError):
    reason = ''.join(found[-1]) if found else 'no answer'
    return (
      f"Beam's job service or a worker cannot be reached ({reason}); see what"
      ' it wrote, and check --job_endpoint and --environment_config'
    )
  return ''


def _counters(result) -> dict[str, int]:
  wanted = metrics.MetricsFilter().with_namespace(NAMESPACE)
  try:
    found = result.metrics().query(wanted)['counters']
  except NotImplementedError:  # an engine that does not count
    return {}
  return dict(sorted((one.key.metric.name, one.result) for one in found))
