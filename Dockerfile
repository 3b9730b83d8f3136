# fastft on a host with NVIDIA GPUs (A100, H100 and newer; driver for CUDA 12.8 or later).
#   docker build -t fastft .
#   docker run --gpus all -v "$PWD:/workspace" -v hf:/models fastft run recipes/llama31_sft.toml
# The CUDA libraries come with torch; the driver comes from the host.
FROM python:3.11-slim-bookworm

# Triton compiles small C files when training starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# The layers that change least come first: torch, then the pinned list, then fastft.
RUN pip install torch==2.13.0
COPY requirements /opt/fastft/requirements
RUN pip install --no-deps -r /opt/fastft/requirements/gpu.txt
COPY pyproject.toml README.md LICENSE /opt/fastft/
COPY fastft /opt/fastft/fastft
RUN pip install --no-deps --no-build-isolation /opt/fastft

RUN useradd --create-home --uid 1000 fastft && mkdir /models /workspace && chown fastft /models /workspace
USER fastft
ENV HF_HOME=/models
WORKDIR /workspace
VOLUME ["/models", "/workspace/runs"]
HEALTHCHECK --interval=5m --timeout=60s CMD ["fastft", "doctor"]
ENTRYPOINT ["fastft"]
CMD ["--help"]
