"""Input pipeline, train step, loop, checkpoints and reports."""
