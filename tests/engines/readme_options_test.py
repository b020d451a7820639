"""The options that the README gives for engines that are not run here."""

import os
import re
import shlex

from apache_beam.options import pipeline_options

from beam_jobs import common_flags

_ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)


def test_beam_knows_all_of_them():
  with open(os.path.join(_ROOT, 'README.md'), encoding='utf-8') as file:
    section = file.read().partition('#### On a cluster')[2]
  section = section.partition('\n### ')[0]
  found = {}
  for text in re.findall(r'--runner=(?:[^`\\]|\\\n)+', section):
    # A flag that is not known raises.
    options = common_flags.beam_options(shlex.split(text.replace('\\\n', ' ')))
    found |= options.get_all_options(drop_default=True)
  assert found['runner'] == 'DataflowRunner'
  assert found['environment_type'] == 'EXTERNAL'
  assert found['sdk_container_image'].endswith('/transvw-beam')
  (flink,) = re.findall(r'`(--parallelism=\d+)`', section)
  assert (
    common_flags.beam_options([flink])
    .view_as(pipeline_options.FlinkRunnerOptions)
    .parallelism
  )
  (version,) = set(re.findall(r'flink([\d.]+)_job_server', section))
  known = pipeline_options.FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
  assert version in known
