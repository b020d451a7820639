"""Apache Beam jobs and TFDS builders."""
