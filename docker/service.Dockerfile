# API, webhooks and maintenance, without torch. Build from the root of the repository:
#   docker build -f docker/service.Dockerfile -t ivmix-service .
# The tests run on this Python and Debian version.
ARG PYTHON=python:3.11.15-slim-bookworm

FROM ${PYTHON} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/ivmix
# Dependencies first: they rarely change, and this layer is most of the image.
COPY constraints.txt pyproject.toml LICENSE README.md ./
COPY service/__init__.py service/__init__.py
COPY worker/__init__.py worker/__init__.py
COPY sampler/__init__.py sampler/__init__.py
COPY demo/__init__.py demo/__init__.py
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/ivmix/bin/pip install --disable-pip-version-check -c constraints.txt '.[api,otel]'
COPY . .
RUN /opt/ivmix/bin/pip install --disable-pip-version-check --no-cache-dir --no-deps --force-reinstall .

FROM ${PYTHON}
LABEL org.opencontainers.image.title="ivmix-service" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/ivmix /opt/ivmix
# Only /data (with file storage) and /tmp are written to; the root file system can be read-only.
ENV PATH=/opt/ivmix/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    IVMIX_HOST=0.0.0.0 \
    IVMIX_PORT=8000 \
    IVMIX_DATA_DIR=/data \
    IVMIX_PULSE_FILE=/tmp/ivmix.pulse
RUN install -d -o 10001 -g 10001 -m 0750 /data
# Numeric, because Kubernetes' runAsNonRoot cannot check a user name.
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["ivmix"]
CMD ["api"]
