"""Runs Beam pipelines: which engine takes them, and what they counted."""

from absl import logging
import apache_beam as beam
from apache_beam import metrics
from apache_beam.options import pipeline_options
from apache_beam.runners import runner as beam_runner

from transvw_tf2 import errors

# All counters of this project.
NAMESPACE = 'transvw'


def count(name: str, amount: int = 1) -> None:
  """Adds to a counter, from inside a DoFn."""
  metrics.Metrics.counter(NAMESPACE, name).inc(amount)


def prefer_local_engine(pipeline: beam.Pipeline) -> None:
  """Gives a pipeline whose user named no engine to the FnApiRunner.

  Beam's own default, the DirectRunner, first tries to download another engine
  from the internet and comes to the FnApiRunner only when that fails.
  """
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
    UserError: an unknown runner, or options that do not fit together.
  """
  try:
    pipeline = beam.Pipeline(runner=runner, options=options)
  except ValueError as error:
    raise errors.UserError(f'Beam options do not fit: {error}') from error
  prefer_local_engine(pipeline)
  with pipeline:
    _ = pipeline | transform
  counters = _counters(pipeline.result)
  for name, value in counters.items():
    logging.info('%s: %d', name, value)
  return counters


def _counters(result) -> dict[str, int]:
  wanted = metrics.MetricsFilter().with_namespace(NAMESPACE)
  try:
    found = result.metrics().query(wanted)['counters']
  except NotImplementedError:  # an engine that does not count, such as Dask
    return {}
  return dict(sorted((one.key.metric.name, one.result) for one in found))
