# A worker for one GPU and one model. The torch wheels contain CUDA, so the machine needs only the driver.
#   docker build -f docker/worker.Dockerfile -t ivmix-worker .
# Without a GPU the image works too, slowly. A smaller image for the CPU: --build-arg TORCH_INDEX=<torch's index of CPU wheels>
ARG PYTHON=python:3.11.15-slim-bookworm

FROM ${PYTHON} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG TORCH_INDEX=""
WORKDIR /src
RUN python -m venv /opt/ivmix
COPY constraints.txt constraints-gpu.txt pyproject.toml LICENSE README.md ./
# Gigabytes that change only with constraints.txt.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/ivmix/bin/pip install --disable-pip-version-check ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    -c constraints-gpu.txt torch
COPY service/__init__.py service/__init__.py
COPY worker/__init__.py worker/__init__.py
COPY sampler/__init__.py sampler/__init__.py
COPY demo/__init__.py demo/__init__.py
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/ivmix/bin/pip install --disable-pip-version-check -c constraints-gpu.txt '.[worker,otel]'
COPY . .
RUN /opt/ivmix/bin/pip install --disable-pip-version-check --no-cache-dir --no-deps --force-reinstall .

FROM ${PYTHON}
LABEL org.opencontainers.image.title="ivmix-worker" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/ivmix /opt/ivmix
# `ivmix models fetch` writes /weights, workers only read it; /data and /scratch belong to the worker.
ENV PATH=/opt/ivmix/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/scratch/cache \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    IVMIX_HOST=0.0.0.0 \
    IVMIX_DATA_DIR=/data \
    IVMIX_WEIGHTS_DIR=/weights \
    IVMIX_SCRATCH_DIR=/scratch \
    IVMIX_PULSE_FILE=/tmp/ivmix.pulse
RUN install -d -o 10001 -g 10001 -m 0750 /data /weights /scratch
USER 10001:10001
ENTRYPOINT ["ivmix"]
CMD ["worker"]
