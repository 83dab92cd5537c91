# The service in one image: page, API, worker, native kernels. What it keeps lies in /data.
#
#   docker build -t acorn .                        for processors
#   docker build -t acorn:gpu --target gpu .       for NVIDIA GPUs too
#   docker run --rm -p 8000:8000 -v acorn-data:/data --read-only --tmpfs /tmp -e ACORN_ADMIN_KEY acorn
# with the first key in your environment, such as `openssl rand -hex 32` makes.
#
# PyTorch's default build for Linux brings CUDA. For a small image of processors alone, name the index of
# PyTorch's builds for processors: --build-arg TORCH_INDEX=URL. A private pip or npm configuration is
# passed as a secret and leaves no trace in the image: --secret id=pip_conf,src=pip.conf, id=npmrc.
ARG BASE_IMAGE=debian:bookworm-slim
# Compute capabilities of the GPUs that the kernels are compiled for, without the dot.
ARG CUDA_ARCHITECTURES="75 80 86 89 90 100 120"

FROM ${BASE_IMAGE} AS tools
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /src

FROM tools AS build
COPY . .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=npmrc,target=/root/.npmrc \
    make wheel

# The virtual environments are moved to the images as they are, without what only builds need.
FROM build AS installed-cpu
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    PIP_EXTRA_INDEX_URL=${TORCH_INDEX} docker/install.sh /opt/acorn && docker/shrink.sh /opt/acorn

# tiny-cuda-nn takes long to compile; only a new pin of it or of PyTorch has that done again.
FROM tools AS tiny-cuda-nn
ARG CUDA_ARCHITECTURES
ARG TCNN_ARCHITECTURES=${CUDA_ARCHITECTURES}
ARG TCNN_SOURCE=
COPY constraints.txt pyproject.toml ./
COPY docker/tiny_cuda_nn.sh docker/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 -m venv /opt/acorn \
    && /opt/acorn/bin/python -m pip install -q -c constraints.txt torch \
    && docker/tiny_cuda_nn.sh /opt/acorn "${TCNN_ARCHITECTURES}" "${TCNN_SOURCE}"

FROM tiny-cuda-nn AS installed-gpu
ARG CUDA_ARCHITECTURES
COPY --from=build /src /src
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    docker/install.sh /opt/acorn cuda
RUN cd / && /opt/acorn/bin/python -m acorn_svc.field.ops.cuda_programs \
        --architectures "sm_$(echo ${CUDA_ARCHITECTURES} | sed 's/ /,sm_/g')" \
    && /src/docker/shrink.sh /opt/acorn

FROM ${BASE_IMAGE} AS base
RUN apt-get update -q \
    && apt-get install -qy --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 acorn \
    && useradd --system --uid 10001 --gid acorn --home-dir /data --no-create-home acorn \
    && install -d -o acorn -g acorn /data
ENV PATH=/opt/acorn/bin:$PATH \
    HOME=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ACORN_DATA=/data \
    ACORN_HOST=0.0.0.0 \
    ACORN_PORT=8000 \
    ACORN_LOG_FORMAT=json
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['ACORN_PORT']}/healthz\", timeout=4)"]
CMD ["acorn", "serve"]

FROM base AS gpu
LABEL org.opencontainers.image.title="Acorn for NVIDIA GPUs" \
      org.opencontainers.image.description="Images and shapes as adaptive neural fields, fitted and served." \
      org.opencontainers.image.licenses="MIT"
# The driver comes from the host, through NVIDIA's container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    ACORN_JOB_DEVICE=cuda
COPY --from=installed-gpu /opt/acorn /opt/acorn

FROM base AS cpu
LABEL org.opencontainers.image.title="Acorn" \
      org.opencontainers.image.description="Images and shapes as adaptive neural fields, fitted and served." \
      org.opencontainers.image.licenses="MIT"
COPY --from=installed-cpu /opt/acorn /opt/acorn
