# The service in one image: page, API, worker and an embedded store; its data lives in /data.
#
#   docker build -t acorn .
#   docker run --rm -p 8000:8000 -v acorn-data:/data --read-only --tmpfs /tmp \
#       -e ACORN_ADMIN_KEY=$(openssl rand -hex 32) acorn
#
# A private pip or npm configuration is passed as a secret and leaves no trace in the image:
#   docker build --secret id=pip_conf,src=pip.conf --secret id=npmrc,src=.npmrc -t acorn .
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS builder
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=npmrc,target=/root/.npmrc \
    make wheel
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 -m venv /opt/acorn \
    && wheel=$(echo dist/acorn_svc-*.whl) \
    && /opt/acorn/bin/pip install --no-input --no-cache-dir -q -c constraints.txt "$wheel[demo]" \
    && /opt/acorn/bin/python -m compileall -q /opt/acorn/lib/python3*/site-packages/acorn_svc

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Acorn" \
      org.opencontainers.image.description="Images as adaptive neural fields, fitted and served." \
      org.opencontainers.image.licenses="MIT"
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 acorn \
    && useradd --system --uid 10001 --gid acorn --home-dir /data --no-create-home acorn \
    && install -d -o acorn -g acorn /data
COPY --from=builder /opt/acorn /opt/acorn
ENV PATH=/opt/acorn/bin:$PATH \
    HOME=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER acorn
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["acorn", "serve", "--host", "0.0.0.0", "--data", "/data"]
