"""Names that an exported encoder and its callers agree on."""

# Signatures; each has one output, float32 (B, embedding size).
EMBED_CUBES = 'embed_cubes'  # `cubes` float32 (B, X, Y, Z, 1), HU
EMBED_CUBES_INT16 = 'embed_cubes_int16'  # `cubes` int16 (B, X, Y, Z, 1), HU
EMBED_BYTES = 'embed_bytes'  # `bytes` string (B,), little-endian int16, C order

# An autoencoder takes thumbnails of whole scans in place of cubes.
EMBED_THUMBNAILS = 'embed_thumbnails'
EMBED_THUMBNAILS_INT16 = 'embed_thumbnails_int16'

CUBES = 'cubes'
THUMBNAILS = 'thumbnails'
BYTES = 'bytes'
EMBEDDING = 'embedding'

# Describes the model, beside saved_model.pb.
METADATA_FILE = 'transvw_model.json'
