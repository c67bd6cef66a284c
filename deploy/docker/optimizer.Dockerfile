# syntax=docker/dockerfile:1.7
# check=error=true
# API, runner and migrations: one image, three commands. PyTorch's CPU build; no Ray, no vLLM.
#   docker build -f deploy/docker/optimizer.Dockerfile -t instructzero-optimizer:0.1.0 .
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
COPY deploy/docker/requirements-optimizer.txt ./
RUN pip install -c requirements.lock -r requirements-optimizer.txt
COPY pyproject.toml README.md LICENSE ./
COPY instructzero ./instructzero
COPY services ./services
RUN pip install --no-deps .

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
LABEL org.opencontainers.image.title="instructzero-optimizer" \
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
EXPOSE 8080 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=3)"]
ENTRYPOINT ["instructzero"]
CMD ["serve", "--no-runner", "--host", "0.0.0.0"]
