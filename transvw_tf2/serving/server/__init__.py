"""A server of exported models: KServe, and what it lacks.

KServe brings the routes and messages of both REST protocols and of gRPC. Added
here are a queue that joins requests into batches, checks before the model is
called, limits, keys and whole scans.
"""
