# The trainer, for NVIDIA GPUs. From the root of the repository:
#
#   docker build -f tools/cluster/train.Dockerfile -t transvw-train .
#
# Not run: Docker was not available.
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir '/src[cuda]' && rm -rf /src
WORKDIR /work
