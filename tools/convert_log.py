r"""Converts a vocabulary to and from the text logs of the published script.

  python tools/convert_log.py --scans SCANS --log LOGS --output VOCABULARY
  python tools/convert_log.py --scans SCANS --vocabulary VOCABULARY \
      --output LOGS

LOGS is a folder with train_data{1,2,3}_vwGen_exRef.txt and
val_data1_vwGen_exRef.txt. VOCABULARY is one that discover_words writes; the
cubes of either are cut by

  tfds build transvw_luna16 --imports beam_jobs.transvw_luna16 \
      --manual_dir SCANS --data_dir DATA \
      --config '{"name": "mine", "vocabulary": "VOCABULARY"}'
"""

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2 import output_lock
from transvw_tf2.discovery import published_log
from transvw_tf2.discovery import vocabulary
from transvw_tf2.scans import luna16

_LOG = flags.DEFINE_string('log', None, 'Folder of text logs to read.')
_VOCABULARY = flags.DEFINE_string('vocabulary', None, 'Vocabulary to read.')
_SCANS = flags.DEFINE_string(
  'scans', None, 'Folder of the scans that they were made from.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to make.', required=True)


def main(argv):
  del argv
  if (_LOG.value is None) == (_VOCABULARY.value is None):
    raise errors.UserError('give one of --log and --vocabulary')
  output = _OUTPUT.value
  output_lock.check_new(output, 'folder')
  scan_files = {one.scan_id: one for one in luna16.find_scans(_SCANS.value)}
  with output_lock.making(output) as temporary:
    if _LOG.value:
      words = published_log.read_logs(_LOG.value, scan_files)
      vocabulary.write_vocabulary(temporary, words)
    else:
      words = vocabulary.read_vocabulary(_VOCABULARY.value)
      published_log.write_logs(temporary, words, scan_files)
  print(f'words: {len(words.words)}, cubes: {len(words.instances)}')
  for note in words.notes:
    print(f'note: {note}')


if __name__ == '__main__':
  mains.run(main)
