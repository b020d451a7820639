"""Engines and counters of Beam pipelines."""

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.runners import runner as beam_runner
from apache_beam.runners.portability import fn_api_runner
import pytest

from beam_jobs import pipelines
from transvw_tf2 import errors


class CountNumberFn(beam.DoFn):
  """Counts how many numbers there are, and their sum."""

  def process(self, number):
    pipelines.count('numbers')
    pipelines.count('sum', number)
    beam.metrics.Metrics.counter('other', 'not_ours').inc()
    yield number


def _runner(*arguments):
  options = pipeline_options.PipelineOptions(list(arguments))
  pipeline = beam.Pipeline(options=options)
  pipelines.prefer_local_engine(pipeline)
  return pipeline.runner


def test_no_named_engine_gives_the_local_one():
  assert isinstance(_runner(), fn_api_runner.FnApiRunner)
  assert isinstance(
    _runner('--direct_num_workers=2'), fn_api_runner.FnApiRunner
  )


def test_a_named_engine_is_kept():
  assert isinstance(_runner('--runner=DirectRunner'), beam.runners.DirectRunner)
  given = fn_api_runner.FnApiRunner()
  pipeline = beam.Pipeline(runner=given)
  pipelines.prefer_local_engine(pipeline)
  assert pipeline.runner is given


def test_run_returns_the_counters():
  for _ in range(2):  # each run counts anew
    transform = beam.Create([1, 2, 4]) | beam.ParDo(CountNumberFn())
    assert pipelines.run(transform) == {'numbers': 3, 'sum': 7}


def test_run_raises_what_a_transform_raises():
  with pytest.raises(ZeroDivisionError):
    pipelines.run(beam.Create([0]) | beam.Map(lambda number: 1 / number))


def test_an_unknown_engine_is_named():
  options = pipeline_options.PipelineOptions(['--runner=SteamRunner'])
  with pytest.raises(errors.UserError, match=r'(?i)Beam options .*STEAMRUNNER'):
    pipelines.run(beam.Create([0]), options=options)


def test_an_engine_that_loses_results_is_refused():
  class DaskRunner(fn_api_runner.FnApiRunner):
    pass

  with pytest.raises(errors.UserError, match='DaskRunner, which loses'):
    pipelines.run(beam.Create([0]), runner=DaskRunner())


@pytest.mark.parametrize(
  'more', [['--job_endpoint=localhost:9', '--job_server_timeout=1'], []]
)
def test_an_engine_that_is_not_there_is_one_line(more):
  options = pipeline_options.PipelineOptions(['--runner=PortableRunner', *more])
  with pytest.raises(errors.UserError, match=r'^Beam[^\n]*--job_endpoint'):
    pipelines.run(beam.Create([0]), options=options)


def test_an_engine_that_lost_a_worker_is_one_line():
  """What a portable engine says if it sees the loss before gRPC tells it."""

  class Engine(beam_runner.PipelineRunner):
    def run_pipeline(self, pipeline, options):
      raise RuntimeError(
        'Pipeline job-1 failed in state FAILED: Error running pipeline.\n'
        'Traceback (most recent call last):\n'
        '  File "data_plane.py", line 594, in input_elements\n'
        'RuntimeError: Channel closed prematurely.\n'
      )

  with pytest.raises(
    errors.UserError,
    match=r'^Beam[^\n]*a worker[^\n]*Channel closed prematurely[^\n]*$',
  ):
    pipelines.run(beam.Create([0]), runner=Engine())


def test_what_a_worker_refuses_is_told_as_it_is():
  def refuse(number):
    raise errors.UserError(f'{number} is of no use')

  with pytest.raises(errors.UserError) as info:
    pipelines.run(beam.Create([7]) | beam.Map(refuse))
  assert str(info.value) == '7 is of no use'
