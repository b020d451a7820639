"""What setup.py requires: declared, pinned at both ends, licences listed."""

import ast
from importlib import metadata
import os
import re
import sys

from packaging import requirements
from packaging import utils
from packaging import version
import pytest
import yaml

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PIN = 'run bash tools/constraints/pin.sh'


def _read(*names):
  with open(os.path.join(_ROOT, *names), encoding='utf-8') as file:
    return file.read()


def _setup(argument):
  (found,) = (
    node.value
    for node in ast.walk(ast.parse(_read('setup.py')))
    if isinstance(node, ast.keyword) and node.arg == argument
  )
  return ast.literal_eval(found)


def _requirements(without=()):
  """Returns what setup.py asks for, as parsed requirements."""
  lines = _setup('install_requires')
  for extra, more in _setup('extras_require').items():
    lines = [*lines, *(() if extra in without else more)]
  return [requirements.Requirement(line) for line in lines]


def _pins(name):
  """Returns {canonical name: version} of a constraints file."""
  lines = _read('tools', 'constraints', name).splitlines()
  pinned = [line.split('==') for line in lines if not line.startswith('#')]
  return {utils.canonicalize_name(one): pin for one, pin in pinned}


def _lower_bound(one):
  (bound,) = (part for part in one.specifier if part.operator == '>=')
  return bound.version


def _files(folder):
  for at, _, names in os.walk(os.path.join(_ROOT, folder)):
    yield from (os.path.join(at, name) for name in names if name[-3:] == '.py')


def _imports(path):
  """Yields the top names that a file imports from outside of its folder."""
  with open(path, encoding='utf-8') as file:
    tree = ast.parse(file.read(), path)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (name.name.split('.')[0] for name in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield node.module.split('.')[0]


_PACKAGES = metadata.packages_distributions()


def _names(required):
  return {utils.canonicalize_name(one.name) for one in required}


@pytest.mark.parametrize('folder', ['transvw_tf2', 'beam_jobs', 'tests'])
def test_what_is_imported_is_required(folder):
  known = _names(_requirements())
  # The server is written against what kserve hands over: FastAPI, gRPC.
  for one in ('kserve', 'fastapi'):
    known |= _names(map(requirements.Requirement, metadata.requires(one)))
  # TensorBoard serves on it.
  known |= {'werkzeug'} if folder == 'tests' else set()
  ours = {'transvw_tf2', 'beam_jobs', 'tests', 'tools'}
  for path in _files(folder):
    for name in set(_imports(path)) - ours - set(sys.stdlib_module_names):
      brought_by = {
        utils.canonicalize_name(one) for one in _PACKAGES.get(name, [name])
      }
      assert brought_by & known, f'{path} imports {name}: add it to setup.py'


def test_every_requirement_has_a_lower_bound():
  for one in _requirements():
    assert _lower_bound(one), one


def test_the_oldest_versions_are_the_lower_bounds():
  # With cuda there is no torch as old as its bound.
  pins = _pins('oldest.txt')
  for one in _requirements(without=('cuda',)):
    got = pins.get(utils.canonicalize_name(one.name))
    assert got is not None, f'{one.name} is not in oldest.txt: {_PIN}'
    bounds = [
      version.Version(_lower_bound(other))
      for other in _requirements(without=('cuda',))
      if other.name == one.name
    ]
    assert version.Version(got) == max(bounds), f'{one}: {_PIN}'


def test_the_newest_versions_are_allowed():
  pins = _pins('newest.txt')
  for one in _requirements():
    got = pins.get(utils.canonicalize_name(one.name))
    assert got is not None, f'{one.name} is not in newest.txt: {_PIN}'
    assert one.specifier.contains(got, prereleases=True), f'{one}: {_PIN}'


def test_the_licence_of_every_requirement_is_listed():
  rows = re.findall(
    r'^\| ([\w.-]+) \| (\S+) \| ([^|]+) \|',
    _read('.github', 'DEPENDENCIES.md'),
    re.MULTILINE,
  )
  licences = {name: licence for name, _, licence in rows}
  versions = {name: listed for name, listed, _ in rows}
  for name in sorted(_names(_requirements())):
    assert name in licences, (
      f'{name} is not in .github/DEPENDENCIES.md: run'
      ' tools/list_licences.py as it says'
    )
    assert not licences[name].startswith('unknown'), name
  pins = _pins('newest.txt')
  for name in pins.keys() & versions.keys():
    assert versions[name] == pins[name], f'{name}: run tools/list_licences.py'


def test_the_workflow_runs_what_is_here_with_few_rights():
  workflow = yaml.safe_load(_read('.github', 'workflows', 'test.yml'))
  assert workflow['permissions'] == {'contents': 'read'}
  commands = []
  for job in workflow['jobs'].values():
    assert job['timeout-minutes'] <= 60
    assert 'permissions' not in job
    for step in job['steps']:
      if 'uses' in step:
        # A tag can be moved to other code, a commit cannot.
        assert re.fullmatch(r'actions/[\w-]+@[0-9a-f]{40}', step['uses'])
      else:
        commands.append(step['run'])
  scripts = {one.split()[1] for one in commands if one.startswith('bash ')}
  assert {'tools/check.sh', 'tools/test.sh', 'tools/test_bounds.sh'} == scripts
  for script in scripts:
    assert os.path.isfile(os.path.join(_ROOT, script))
  # PyYAML reads the key `on` as a truth value.
  assert workflow[True]['schedule'][0]['cron']
