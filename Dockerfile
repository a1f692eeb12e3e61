# syntax=docker/dockerfile:1
# One image for the head and for the worker node. It holds no secret: they come when it runs (docker-compose.yml).

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY superpipe_cluster superpipe_cluster
COPY workers workers
COPY jobs jobs
RUN PIP_CONSTRAINT=/source/constraints.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY constraints.txt /usr/share/spcluster/constraints.txt
# The large packages first: a change of ours then does not fetch gigabytes again. torch brings its CUDA libraries.
RUN pip install --no-cache-dir -c /usr/share/spcluster/constraints.txt torch ray transformers safetensors
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /usr/share/spcluster/constraints.txt "$(echo /wheels/*.whl)[lm]"

# A new volume that is mounted on this folder takes over its owner and mode.
RUN useradd --create-home --uid 10001 spcluster \
    && install --directory --owner spcluster --group spcluster --mode 700 /var/lib/spcluster
USER spcluster
WORKDIR /home/spcluster

ENV SPCLUSTER_HOME=/var/lib/spcluster \
    HF_HOME=/var/lib/spcluster/huggingface \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 7077
CMD ["spcluster", "--help"]
