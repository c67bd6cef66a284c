# syntax=docker/dockerfile:1.7
# check=error=true
# The generator. Default: on a CPU with transformers and the bundled demo model, which also plays
# the demo target. `--target gpu`: vLLM on Ray Serve with CUDA, also for KubeRay.
#   docker build -f deploy/docker/generator.Dockerfile -t instructzero-generator:0.1.0 .
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Address of an index with PyTorch's CPU wheels, as PyTorch's installation page gives it; empty: the
# default index, which on x86 means CUDA and some gigabytes more.
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/instructzero
ENV PATH=/opt/instructzero/bin:$PATH
COPY requirements.lock ./
RUN grep "^torch==" requirements.lock > torch.txt \
 && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r torch.txt
COPY deploy/docker/requirements-generator.txt ./
RUN pip install -c requirements.lock -r requirements-generator.txt
COPY pyproject.toml README.md LICENSE ./
COPY instructzero ./instructzero
COPY services ./services
RUN pip install --no-deps .

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS gpu
# vLLM decides on the versions of PyTorch and its neighbours; the lock holds those of the CPU.
ARG VLLM_VERSION=0.32.0
ARG RAY_VERSION=2.60.0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Triton compiles kernels at run time; KubeRay probes with wget.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev wget \
 && rm -rf /var/lib/apt/lists/* \
 && python -m venv /opt/instructzero \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin instructzero \
 && install -d -o 10001 -g 10001 /models
ENV PATH=/opt/instructzero/bin:$PATH
WORKDIR /src
COPY deploy/docker/requirements-generator.txt ./
RUN pip install "vllm==$VLLM_VERSION" "ray[serve]==$RAY_VERSION" -r requirements-generator.txt
COPY pyproject.toml README.md LICENSE ./
COPY instructzero ./instructzero
COPY services ./services
RUN pip install --no-deps .
LABEL org.opencontainers.image.title="instructzero-generator-gpu" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/healthz', timeout=3)"]
ENTRYPOINT ["instructzero"]
CMD ["generator", "--host", "0.0.0.0", "--engine", "vllm"]

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS cpu
LABEL org.opencontainers.image.title="instructzero-generator" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin instructzero
COPY --from=build /opt/instructzero /opt/instructzero
# The root is read-only and there is no home: what libraries write goes to /tmp.
ENV PATH=/opt/instructzero/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    OMP_NUM_THREADS=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/healthz', timeout=3)"]
ENTRYPOINT ["instructzero"]
CMD ["generator", "--host", "0.0.0.0"]
