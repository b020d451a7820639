r"""Measures a trained network on a split of a target task.

Commands:
  python -m transvw_tf2.evaluate --workdir W --data DATA --output REPORT
  python -m transvw_tf2.evaluate --workdir PRETRAINED --data DATA \
      --probe neighbours --output REPORT

The second classifies by the embeddings of any network, trained for the task or
not. REPORT gets metrics.json and a picture, roc.png or overlays.png, and of
classes predictions.csv, with the place of each example in world mm (LPS).
"""

from absl import flags

from transvw_tf2 import errors
from transvw_tf2 import mains
from transvw_tf2.training import evaluation
from transvw_tf2.training import evaluation_report

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder that transvw_tf2.train wrote; with --probe also a .keras file of'
  ' transvw_tf2.convert.',
  required=True,
)
_DATA = flags.DEFINE_string(
  'data', None, 'Built data set of the target task.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_SPLIT = flags.DEFINE_string('split', 'test', 'Split to measure.')
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint', 'best', ['best', 'latest'], 'Which weights of a run.'
)
_PROBE = flags.DEFINE_enum(
  'probe',
  None,
  evaluation.PROBES,
  'Classify by the embeddings: vote of the nearest, or logistic regression.',
)
_NEIGHBOURS = flags.DEFINE_integer('neighbours', 5, 'That vote.', lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 16, 'Cubes at a time.', lower_bound=1
)
_RESAMPLES = flags.DEFINE_integer(
  'resamples', 1000, 'Of the bootstrap over scans.', lower_bound=0
)
_SEED = flags.DEFINE_integer('seed', 1, 'Of the bootstrap.', lower_bound=0)


def main(argv):
  del argv
  if _NEIGHBOURS.present and _PROBE.value != evaluation.NEIGHBOURS:
    raise errors.UserError(
      f'--neighbours is for --probe {evaluation.NEIGHBOURS}: give both, or'
      ' neither'
    )
  metrics = evaluation_report.evaluate(
    _WORKDIR.value,
    _DATA.value,
    _OUTPUT.value,
    split=_SPLIT.value,
    checkpoint=_CHECKPOINT.value,
    probe=_PROBE.value,
    neighbours=_NEIGHBOURS.value,
    batch_size=_BATCH_SIZE.value,
    resamples=_RESAMPLES.value,
    seed=_SEED.value,
  )
  for name, metric in metrics.items():
    print(f'{name} {metric}')
  print(f'wrote {_OUTPUT.value}')


if __name__ == '__main__':
  mains.run(main)
