"""Names that an exported model and its callers agree on."""

# Signatures; these have one output, `embedding` float32 (B, embedding size).
EMBED_CUBES = 'embed_cubes'  # `cubes` float32 (B, X, Y, Z, 1), HU
EMBED_CUBES_INT16 = 'embed_cubes_int16'  # `cubes` int16 (B, X, Y, Z, 1), HU
EMBED_BYTES = 'embed_bytes'  # `bytes` string (B,), little-endian int16, C order

# An autoencoder takes thumbnails of whole scans in place of cubes.
EMBED_THUMBNAILS = 'embed_thumbnails'
EMBED_THUMBNAILS_INT16 = 'embed_thumbnails_int16'

# Beyond the encoder; these take `cubes` float32 (B, X, Y, Z, 1), HU.
RESTORE = 'restore'  # `restored` float32 (B, X, Y, Z, channels), HU
CLASSIFY_WORD = 'classify_word'  # `probabilities` float32 (B, words)
PREDICT = 'predict'  # `probabilities` float32 (B, classes)
SEGMENT = 'segment'  # `probabilities` float32 (B, X, Y, Z, channels)

# No signature, for it has no batch: a function of the loaded SavedModel. Maps
# int16 (X, Y, Z), HU, and int32 corners along x, y and z to float32 embeddings
# of the cubes of a grid, see models/sliding_windows.
EMBED_WINDOWS = 'embed_windows'

CUBES = 'cubes'
THUMBNAILS = 'thumbnails'
BYTES = 'bytes'
EMBEDDING = 'embedding'
RESTORED = 'restored'
PROBABILITIES = 'probabilities'

# Of inputs and outputs, as the metadata gives them.
UNITS = {
  CUBES: 'HU',
  THUMBNAILS: 'HU',
  BYTES: 'HU as little-endian int16, [x, y, z] in C order',
  EMBEDDING: 'none',
  RESTORED: 'HU',
  PROBABILITIES: 'probability, 0 to 1',
}

# Describes the model, beside saved_model.pb; the version changes when the
# meaning of what is in it does.
METADATA_FILE = 'transvw_model.json'
METADATA_VERSION = 1
