r"""Lists the licences of all dependencies, as their metadata state them.

  python tools/list_licences.py --output .github/DEPENDENCIES.md

Reads what is installed in this environment, so install every extra first:

  pip install -c tools/constraints/newest.txt \
      -e '.[benchmark,cuda,dev,s3,serve,torch]'

The table has a row per package, required directly (by setup.py) or through
others, and marks copyleft and proprietary licences. What a wheel brings in
binary form (such as a Fortran runtime) is not in its metadata, so not here.
"""

from collections.abc import Iterable
import dataclasses
import datetime
from importlib import metadata
import platform
import re

from absl import flags
from packaging import requirements
from packaging import utils

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_file

_PROJECT = flags.DEFINE_string(
  'project', 'transvw-tf2', 'Installed distribution to begin with.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Markdown file to write.', required=True
)

_HEAD = """\
# Dependencies and their licences

Made by `tools/list_licences.py` on {date} from the metadata of the packages
where they were installed (Python {python}, Linux x86_64): what their authors
state, not legal advice, and without what a wheel brings along in binary form.
Nothing of it is part of this repository.

{packages} packages, {marked} of them marked. **Weak copyleft** asks that
changes to the package itself stay under its licence, **strong copyleft** that
works which contain it do; **proprietary** has terms of its own to read.
"""

# What a License field holds instead of a licence.
_EMPTY = ('', 'UNKNOWN', 'DUAL LICENSE')

# Where metadata state nothing.
_NOT_IN_METADATA = {
  'cuda-toolkit': 'unknown; of NVIDIA, holds no files',
  'mlcroissant': 'Apache-2.0 (its repository, mlcommons/croissant)',
  'namex': 'Apache-2.0 (its LICENSE file)',
}

# The order counts: LGPL has GPL in it.
_MARKS = (
  ('weak copyleft', r'LGPL|Lesser General|Library General|MPL|Mozilla'),
  ('weak copyleft', r'\bEPL|Eclipse Public|CDDL|EUPL'),
  ('strong copyleft', r'AGPL|Affero|\bGPL|GNU General|SSPL|OSL-'),
  ('proprietary', r'[Pp]roprietary|NVIDIA|EULA|Commercial'),
)


@dataclasses.dataclass
class Package:
  """An installed distribution: its licence, and what asks for it.

  Attributes:
    extras: extras of the project that bring it; '' is the project itself.
    parents: names of the packages that require it; the project's name where
      setup.py does.
  """

  name: str
  version: str
  licence: str
  extras: set[str] = dataclasses.field(default_factory=set)
  parents: set[str] = dataclasses.field(default_factory=set)


def read_licence(facts: metadata.PackageMetadata) -> str:
  """Returns the licence that metadata state, or 'unknown'.

  The expression comes first (PEP 639), then a short License field, then
  classifiers, which are less exact.
  """
  expression = facts.get('License-Expression')
  if expression:
    return expression
  field = (facts.get('License') or '').strip()
  # Some packages put all of the text there: its first line is the name.
  first = field.splitlines()[0].strip() if field else ''
  classifiers = [
    one.rpartition(' :: ')[2]
    for one in facts.get_all('Classifier') or ()
    if one.startswith('License ::')
  ]
  if first.upper() not in _EMPTY and len(field) <= 80:
    return first
  return ', '.join(classifiers) or first[:80] or 'unknown'


def mark(licence: str) -> str:
  """Returns 'strong copyleft', 'weak copyleft', 'proprietary' or ''."""
  if licence.startswith('unknown'):
    return 'unknown'
  found = []
  for name, pattern in _MARKS:
    if re.search(pattern, licence):
      found.append(name)
      licence = re.sub(pattern, '', licence)
  return ', '.join(dict.fromkeys(found))


def _required(name: str, extras: Iterable[str]) -> Iterable:
  """Yields the requirements of a distribution that hold in this Python."""
  for line in metadata.requires(name) or ():
    one = requirements.Requirement(line)
    # '' is the environment without any extra.
    if one.marker is None or any(
      one.marker.evaluate({'extra': extra}) for extra in ('', *extras)
    ):
      yield one


def _walk(project: str, extra: str, packages: dict) -> list[str]:
  """Adds what an extra of the project requires; returns what is missing."""
  waiting = [(project, (extra,) if extra else ())]
  seen = set(waiting)
  missing = []
  while waiting:
    parent, extras = waiting.pop()
    for one in _required(parent, extras):
      name = utils.canonicalize_name(one.name)
      try:
        facts = metadata.metadata(name)
      except metadata.PackageNotFoundError:
        missing.append(name)
        continue
      if name != project:
        licence = read_licence(facts)
        if licence == 'unknown':
          licence = _NOT_IN_METADATA.get(name, licence)
        package = packages.setdefault(
          name, Package(name, facts['Version'], licence)
        )
        package.extras.add(extra)
        package.parents.add(parent)
      step = (name, tuple(sorted(one.extras)))
      if step not in seen:
        seen.add(step)
        waiting.append(step)
  return missing


def find_packages(project: str) -> list[Package]:
  """Returns all packages that a project and its extras require, by name.

  Raises:
    errors.UserError: the project or something it requires is not installed.
  """
  project = utils.canonicalize_name(project)
  try:
    extras = metadata.metadata(project).get_all('Provides-Extra') or []
  except metadata.PackageNotFoundError as error:
    raise errors.UserError(
      f'{project} is not installed here; run pip install -e . first'
    ) from error
  packages = {}
  missing = []
  for extra in ('', *sorted(extras)):
    missing += [(name, extra) for name in _walk(project, extra, packages)]
  if missing:
    names = ', '.join(sorted({name for name, _ in missing}))
    wanted = ','.join(sorted({extra for _, extra in missing} - {''}))
    raise errors.UserError(
      f'not installed here: {names}; run pip install -e'
      f' ".[{wanted}]" first, so that the list is whole'
    )
  return sorted(packages.values(), key=lambda one: one.name)


def _cells(package: Package, project: str) -> tuple[str, ...]:
  marked = mark(package.licence)
  if project in package.parents:
    parents = 'setup.py'
  else:
    first, more = sorted(package.parents)[:3], len(package.parents) - 3
    parents = ', '.join([*first, *([f'{more} more'] if more > 0 else [])])
  return (
    package.name,
    package.version,
    package.licence.replace('|', '/'),
    f'**{marked}**' if marked else '',
    parents,
  )


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  titles = tuple(titles)
  lines = [titles, ('---',) * len(titles), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def write_tables(packages: list[Package], project: str, date: str) -> str:
  """Returns the list as Markdown: what is always installed, then the rest."""
  titles = ('package', 'version', 'licence', '', 'required by')
  always = [_cells(one, project) for one in packages if '' in one.extras]
  more = [
    (*_cells(one, project), ', '.join(sorted(one.extras)))
    for one in packages
    if '' not in one.extras
  ]
  head = _HEAD.format(
    date=date,
    python=platform.python_version(),
    packages=len(packages),
    marked=sum(bool(mark(one.licence)) for one in packages),
  )
  return (
    f'{head}\n## Always installed\n\n{_table(titles, always)}'
    f'\n## With an extra\n\n{_table((*titles, "extra"), more)}'
  )


def main(argv):
  del argv
  project = utils.canonicalize_name(_PROJECT.value)
  packages = find_packages(project)
  date = datetime.date.today().isoformat()
  text = write_tables(packages, project, date)
  with (
    output_file.replacing(_OUTPUT.value) as temporary,
    open(temporary, 'w', encoding='utf-8') as file,
  ):
    file.write(text)
  marked = sum(bool(mark(one.licence)) for one in packages)
  print(f'packages: {len(packages)}, marked: {marked}')


if __name__ == '__main__':
  mains.run(main)
