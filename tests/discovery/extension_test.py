"""What extends a vocabulary, and what does not."""

import pytest

from tests.discovery import scan_rows
from transvw_tf2 import errors
from transvw_tf2 import schema
from transvw_tf2.discovery import extension
from transvw_tf2.discovery import selection


@pytest.mark.parametrize('frame', ['voxel', 'lung'])
def test_more_words_leave_the_old_ones_as_they_are(frame):
  scans, descriptors = scan_rows.make_lung_collection()
  old, new = (
    selection.build_vocabulary(
      scans,
      descriptors,
      scan_rows.make_settings(words=words, frame=frame, min_distance=0),
    )
    for words in (3, 6)
  )
  assert len(new.words) == 6
  assert new.words[:3] == old.words
  assert tuple(one for one in new.instances if one.word < 3) == old.instances
  extension.check_extends(new, old, 'V')


def test_other_scans_do_not_extend_a_vocabulary():
  scans, descriptors = scan_rows.make_collection()
  old = selection.build_vocabulary(
    scans, descriptors, scan_rows.make_settings(words=3)
  )
  more = scan_rows.make_settings(words=6)

  def refused(scans, descriptors):
    new = selection.build_vocabulary(scans, descriptors, more)
    with pytest.raises(errors.UserError, match='V cannot be extended') as error:
      extension.check_extends(new, old, 'V')
    return str(error.value)

  # Without a reference, the words are others.
  first = old.words[0]
  fewer = [scan for scan in scans if scan.scan_id != first.scan_id]
  assert f'its word 0 is {first.place} in scan {first.scan_id}, but' in refused(
    fewer, descriptors
  )
  # With one more validation patient, some cubes are.
  reference = descriptors[old.words[0].scan_id]
  assert 'these scans differ, such as one in scan v' in refused(
    [*scans, scan_rows.make_row('v9', schema.VALIDATION, candidates=[])],
    descriptors | {'v9': reference},
  )
  # With no more words than before, one is missing.
  new = selection.build_vocabulary(
    scans, descriptors, scan_rows.make_settings(words=2)
  )
  with pytest.raises(errors.UserError, match='17 of its cubes and those of'):
    extension.check_extends(new, old, 'V')
