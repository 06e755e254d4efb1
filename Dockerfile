# The service in one image, with the torch that pip takes by default (on Linux, the CUDA build). For a CPU image say which:
#   docker build --build-arg TORCH_PIP_ARGS="--index-url URL-OF-THE-CPU-WHEELS" -t tokenreward .
#   docker run --init --shm-size=1g --gpus all -p 127.0.0.1:8000:8000 tokenreward
# --shm-size: Ray keeps large requests in /dev/shm. --init: somebody must reap the processes that Ray leaves.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_PIP_ARGS=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /opt/tokenreward

# torch changes rarely and is large: a layer of its own.
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
# Inside a container loopback reaches nobody. Publish the port to loopback, or give the service keys (`api_keys_file`).
CMD ["serve", "--host", "0.0.0.0"]
