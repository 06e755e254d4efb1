# The service in one image, with the torch that pip takes by default (on Linux, the CUDA build).
#
#   docker build -t tokenreward .
#   docker run --init --shm-size=1g --gpus all -p 127.0.0.1:8000:8000 tokenreward
#
# For a CPU image, name an index of CPU wheels:
#
#   docker build --build-arg TORCH_PIP_ARGS="--index-url URL-OF-THE-CPU-WHEELS" -t tokenreward .
#
# `--shm-size`: Ray keeps large requests in /dev/shm.
# `--init`: a process must reap the child processes that Ray leaves behind.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_PIP_ARGS=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /opt/tokenreward

# torch is large and changes rarely, so it has a layer of its own.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_PIP_ARGS} torch

COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY clients clients
RUN pip install --constraint constraints.txt ".[server]"

RUN useradd --create-home --uid 1000 tokenreward
USER tokenreward
WORKDIR /home/tokenreward

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["tokenreward"]
# Inside a container nobody reaches loopback, so the service listens on all interfaces. Publish the
# port to loopback only, or give the service keys (`api_keys_file`).
CMD ["serve", "--host", "0.0.0.0"]
