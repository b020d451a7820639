"""Imports point one way: each layer sees only those before it."""

import ast
import os
import sys

import pytest

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What each part of the package may import besides itself.
_ALLOWED = {
  'schema': set(),
  'errors': set(),
  'output_file': {'errors'},
  'output_lock': {'errors'},
  'file_size': {'errors'},
  'h5_arrays': {'errors', 'file_size'},
  'scans': {'schema', 'errors'},
  'discovery': {'schema', 'errors', 'scans', 'output_file'},
  'perturb': {'schema', 'errors', 'scans'},
  'models': {'schema', 'errors', 'scans'},
  'training': {
    *('schema', 'errors', 'scans', 'discovery', 'perturb', 'models'),
    *('output_file', 'output_lock', 'file_size', 'h5_arrays'),
  },
  'serving': {
    *('schema', 'errors', 'scans', 'discovery', 'perturb', 'models'),
    *('training', 'output_file'),
  },
  'study': {
    *('schema', 'errors', 'scans', 'discovery', 'perturb', 'models'),
    *('training', 'output_file'),
  },
  # Its __main__ is a main.
  'convert': {
    *('schema', 'errors', 'scans', 'discovery', 'perturb', 'models'),
    *('training', 'mains', 'output_file', 'file_size', 'h5_arrays'),
  },
}
# Mains may import everything in the package.
_MAINS = {
  *('__init__', 'mains', 'train', 'export', 'embed', 'evaluate', 'serve'),
}
_HEAVY = {'tensorflow', 'keras', 'tensorflow_datasets', 'gin'}


def _imports(path):
  """Yields the dotted names that a file imports, wherever in the file."""
  with open(path, encoding='utf-8') as file:
    tree = ast.parse(file.read(), path)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
      # Relative ones stay within their own folder.
      assert node.level <= 1, f'{path} imports from a folder above'
      if not node.level:
        yield from (f'{node.module}.{name.name}' for name in node.names)


def _files(folder):
  for at, folders, names in os.walk(os.path.join(_ROOT, folder)):
    folders[:] = [one for one in folders if one != '__pycache__']
    for name in sorted(names):
      if name.endswith('.py'):
        path = os.path.join(at, name)
        parts = os.path.relpath(path, _ROOT).removesuffix('.py').split(os.sep)
        yield path, parts


def _uses():
  """Yields (file, its part of the package, dotted name imported)."""
  for path, parts in _files('transvw_tf2'):
    for name in _imports(path):
      yield os.path.relpath(path, _ROOT), parts[1], name.split('.')


def test_every_part_has_its_place():
  parts = {parts[1] for _, parts in _files('transvw_tf2')}
  assert parts == set(_ALLOWED) | _MAINS


def test_layers_see_only_those_before_them():
  wrong = [
    f'{path} imports {".".join(name)}'
    for path, part, name in _uses()
    if part in _ALLOWED
    and name[0] == 'transvw_tf2'
    and len(name) > 1
    and name[1] not in _ALLOWED[part] | {part}
  ]
  assert not wrong


def test_the_package_never_imports_jobs_tests_or_tools():
  wrong = [
    f'{path} imports {".".join(name)}'
    for path, _, name in _uses()
    if name[0] in {'beam_jobs', 'tests', 'tools', 'apache_beam'}
  ]
  assert not wrong


@pytest.mark.parametrize('part', ['schema', 'scans', 'discovery'])
def test_work_on_scans_needs_no_tensorflow(part):
  wrong = [
    f'{path} imports {".".join(name)}'
    for path, of, name in _uses()
    if of == part and name[0] in _HEAVY
  ]
  assert not wrong


def test_the_client_of_the_server_needs_numpy_alone():
  path = os.path.join(_ROOT, 'transvw_tf2', 'serving', 'client.py')
  tops = {name.split('.')[0] for name in _imports(path)}
  assert not tops - set(sys.stdlib_module_names) - {'numpy'}


def test_gin_stays_at_the_boundary():
  files = {path for path, _, name in _uses() if name[0] == 'gin'}
  assert files
  for path in files:
    assert path == 'transvw_tf2/models/__init__.py' or path.startswith(
      'transvw_tf2/training/'
    )
  for path, _ in _files('beam_jobs'):
    assert not {name.split('.')[0] for name in _imports(path)} & {'gin'}


def test_nothing_imports_tools_or_tests():
  for folder in ('beam_jobs', 'tools'):
    for path, _ in _files(folder):
      tops = {name.split('.')[0] for name in _imports(path)}
      assert not tops & {'tools', 'tests'}, path


def test_the_rule_finds_a_wrong_import(tmp_path):
  path = tmp_path / 'wrong.py'
  path.write_text('def f():\n  from transvw_tf2.training import loop\n')
  assert list(_imports(path)) == ['transvw_tf2.training.loop']
