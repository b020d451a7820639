"""Embeds a whole CT scan with an exported encoder.

Command:
  python -m transvw_tf2.embed --model DIR --scan FILE --output F.npz

F.npz holds `embeddings` float32 (N, 512), `places` int32 (N, 3), the voxel
corners [x, y, z] of the cubes, and `mean` float32 (512,).
Cost: about 0.2 s a cube on 2 CPU cores, 1 to 2 minutes for 512x512x250.
"""

from absl import flags

from transvw_tf2 import mains
from transvw_tf2.serving import embed

_MODEL = flags.DEFINE_string(
  'model', None, 'Folder that transvw_tf2.export wrote.', required=True
)
_SCAN = flags.DEFINE_string('scan', None, 'Scan to embed.', required=True)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'File to write, .npz.', required=True
)
_STRIDE = flags.DEFINE_list(
  'stride',
  None,
  'Voxels between cubes along x,y,z such as 32,32,16; smaller than a cube gives'
  ' overlap. Default: the size of a cube (64,64,32).',
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8, 'Cubes per call of the model.'
)


def main(argv):
  del argv
  embedding = embed.embed_file(
    _MODEL.value,
    _SCAN.value,
    _OUTPUT.value,
    stride=None if _STRIDE.value is None else embed.parse_stride(_STRIDE.value),
    batch_size=_BATCH_SIZE.value,
  )
  count, size = embedding.embeddings.shape
  print(f'wrote {_OUTPUT.value}: {count} cubes, {size} numbers each')


if __name__ == '__main__':
  mains.run(main)
