"""Fuzzes all readers and importers and prints what came of it.

Command, about 20 minutes on two cores:
  python -m tests.fuzz --cases 5000 --processes 2

One case, written to a folder to be looked at, and read:
  python -m tests.fuzz --readers nrrd --first 17 --cases 1 --keep FOLDER

Prints a line per reader: how many cases were rejected with a reason and how
many read, the slowest case, the most memory that one took, and how many lines
of the functions that read did run, in these cases alone. Exits with 1 when a
case went wrong, and says which.
"""

import argparse
from concurrent import futures
import sys

from tests.fuzz import harness
from tests.fuzz import worker

_COLUMNS = (
  *('reader', 'cases', 'rejected', 'read', 'wrong', 'slowest s', 'peak MB'),
  'lines',
)


def _keep(args, known):
  """Writes the files of the first case, and reads them."""
  place = worker.Place(args.keep)
  target = known[args.readers[0]]
  seeds = worker.make_seeds(target, place)
  files = worker.make_case(target, seeds, args.seed, args.first)
  place.put(files)
  print(f'wrote {place.case}', flush=True)
  target.read(place.case)


def _print(outcomes):
  row = '{:22} {:>7} {:>9} {:>7} {:>6} {:>10} {:>8} {:>7}'
  print(row.format(*_COLUMNS))
  for one in outcomes:
    print(
      row.format(
        *(one.name, one.cases, one.rejected),
        one.cases - one.rejected - len(one.failures),
        *(len(one.failures), f'{one.seconds:.3f}', f'{one.megabytes:.0f}'),
        f'{one.coverage:.1%}',
      )
    )
  total = sum(one.cases for one in outcomes)
  wrong = sum(len(one.failures) for one in outcomes)
  print(f'{total} cases of {len(outcomes)} readers, {wrong} went wrong')


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--readers', type=lambda text: text.split(','))
  parser.add_argument('--cases', type=int, default=5000)
  parser.add_argument('--first', type=int, default=0)
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--missed', action='store_true', help='print the lines')
  parser.add_argument('--keep', help='folder for the files of one case')
  args = parser.parse_args()
  known = worker.load_targets()
  names = args.readers or list(known)
  if missing := sorted(set(names) - set(known)):
    parser.error(
      f'no readers {", ".join(missing)} here (those of .pt need PyTorch), only'
      f' {", ".join(known)}'
    )
  if args.keep:
    args.readers = names
    return _keep(args, known)

  def run(name):
    (outcome,) = harness.run(
      [name],
      args.cases,
      seed=args.seed,
      first=args.first,
      coverage=True,
      groups=None if known[name].heavy else worker.LIGHT_GROUPS,
    )
    print(
      f'{name}: {outcome.cases} cases, {len(outcome.failures)} went wrong',
      *(
        f'--- {case}: {why}' for case, why in list(outcome.failures.items())[:9]
      ),
      sep='\n',
      file=sys.stderr,
      flush=True,
    )
    return outcome

  with futures.ThreadPoolExecutor(args.processes) as pool:
    outcomes = list(pool.map(run, names))
  harness.share_lines(outcomes)
  for one in outcomes:
    if args.missed and one.missed():
      print(f'{one.name} never ran {one.missed()}')
  _print(outcomes)
  return 1 if any(one.failures for one in outcomes) else 0


if __name__ == '__main__':
  sys.exit(main())
