# Workers of Beam on Flink, Spark and Dataflow, without GPUs. From the root of the
# repository, with the versions of Python and Beam that start the jobs:
#
#   docker build -f tools/cluster/beam_worker.Dockerfile -t transvw-beam \
#       --build-arg BEAM=2.77.0 --build-arg PYTHON=3.11 .
#
# Not run: Docker was not available.
ARG PYTHON=3.11
ARG BEAM=2.77.0
FROM apache/beam_python${PYTHON}_sdk:${BEAM}
ARG BEAM
COPY . /src
RUN pip install --no-cache-dir '/src[s3]' "apache-beam[gcp,aws]==${BEAM}" \
    && rm -rf /src
ENV TF_CPP_MIN_LOG_LEVEL=2 CUDA_VISIBLE_DEVICES=""
# The base image's own entry point starts the worker.
