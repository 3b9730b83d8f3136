# fastft on a host with NVIDIA GPUs (A100, H100 and newer).
#
#   docker build -t fastft .
#   mkdir -p runs && docker run --gpus all -v "$PWD/recipes:/workspace/recipes:ro" -v "$PWD/runs:/workspace/runs" \
#       -v fastft-models:/models fastft run recipes/llama31_sft.toml
#
# The driver comes from the host, the CUDA libraries come with torch. PyPI's torch is built for CUDA 13.0, which needs
# driver 580 or newer. For an older driver of CUDA 12, build with --build-arg TORCH_INDEX=<PyTorch's index of builds for
# CUDA 12.6>: this torch has no build for CUDA 12.8, and bitsandbytes has a library for 12.6. The container's user has uid 1000 and must be able to write to runs/. For a gated base model pass HF_TOKEN with
# `docker run -e HF_TOKEN`; no secret is ever part of the image.
FROM python:3.11.13-slim-bookworm

# Triton compiles small C files when training starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# The layers that change least come first: torch, then the pinned list, then fastft.
ARG TORCH_INDEX=
RUN pip install torch==2.13.0 ${TORCH_INDEX:+-i "$TORCH_INDEX"}
COPY requirements /opt/fastft/requirements
RUN pip install --no-deps -r /opt/fastft/requirements/gpu.txt
COPY pyproject.toml README.md LICENSE /opt/fastft/
COPY fastft /opt/fastft/fastft
RUN pip install --no-deps --no-build-isolation /opt/fastft

# Downloads, converted models and compiled kernels go to /models, runs to /workspace/runs.
RUN useradd --create-home --uid 1000 fastft \
    && mkdir -p /models /workspace/runs \
    && chown -R fastft /models /workspace
USER fastft
ENV HF_HOME=/models XDG_CACHE_HOME=/models/cache TRITON_CACHE_DIR=/models/cache/triton
WORKDIR /workspace
VOLUME ["/models", "/workspace/runs"]
HEALTHCHECK --interval=5m --timeout=60s CMD ["fastft", "doctor"]
ENTRYPOINT ["fastft"]
CMD ["--help"]
