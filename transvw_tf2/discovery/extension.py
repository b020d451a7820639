"""Adds words to a vocabulary without changing those that are there.

More words wanted leave the earlier ones as they are (`selection.choose_words`),
so all are discovered again and the earlier ones compared.
"""

from transvw_tf2 import errors
from transvw_tf2.discovery import vocabulary


def check_extends(
  found: vocabulary.Vocabulary, old: vocabulary.Vocabulary, folder: str
) -> None:
  """Checks that a vocabulary is an older one and some words more.

  Args:
    found: discovered with the settings of the older one, but more words.
    old: the older one.
    folder: where the older one was read from.

  Raises:
    UserError: a word or a cube of the older one is not the same.
  """
  count = len(old.words)
  advice = (
    'use just the scans it was made from, the same descriptor, and the same'
    ' versions of the packages, or discover all words anew without extend'
  )
  for before, now in zip(old.words, found.words, strict=False):
    if before != now:
      raise errors.UserError(
        f'{folder} cannot be extended: its word {before.word} is'
        f' {before.place} in scan {before.scan_id}, but these scans give'
        f' {now.place} in scan {now.scan_id}; {advice}'
      )
  kept = tuple(one for one in found.instances if one.word < count)
  if len(found.words) < count or kept != old.instances:
    differing = set(kept) ^ set(old.instances)
    example = min(differing) if differing else None
    where = f', such as one in scan {example.scan_id}' if example else ''
    raise errors.UserError(
      f'{folder} cannot be extended: {len(differing)} of its cubes and those'
      f' of these scans differ{where}; {advice}'
    )
