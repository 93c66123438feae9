# syntax=docker/dockerfile:1.7
#
# Two images of one file:
#   docker build --tag selfemo .                    GPU: CUDA, PyTorch, Transformer Engine, FlashAttention, vLLM
#   docker build --target cpu --tag selfemo:cpu .   CPU: the demo and the tests, no GPU anywhere
#
# The images' user (10001) writes into the mounted runs/, which Docker would make as root's: mkdir -p runs && sudo chown 10001 runs
#
#   docker run --gpus all --ipc=host --ulimit memlock=-1 --volume "$PWD/runs:/workspace/runs" \
#       --volume /models/Qwen3-8B:/models/Qwen3-8B:ro --env MODEL_DIR=/models/Qwen3-8B --volume /data:/data:ro --env SELFEMO_DATA=/data \
#       selfemo torchrun --nproc-per-node 8 examples/train_qwen3_8b.sh
#   docker run --gpus all --ipc=host --volume "$PWD/runs:/workspace/runs" selfemo python -m tools.gpu_check     first on a new kind of GPU
#
# NOT BUILT YET: no machine of the project has a Docker daemon or a GPU. Checked so far are the pins (a test compares them with
# requirements/ and setup.py, and Transformer Engine's with the range megatron-core names) and the form (hadolint). What most needs the first
# build is the compilation of Transformer Engine and FlashAttention against this torch, and the image tags.
#
# The base is NVIDIA's CUDA image, not PyTorch's: Python is chosen here, and PyTorch's wheel, pinned below,
# brings its own CUDA 13.0 libraries, cuDNN and NCCL. The driver on the host must support CUDA 13.
# Source of the versions: PyPI metadata of torch 2.13.0 (CUDA 13.0.3, triton 3.7.1) and of vllm 0.32.0 (torch==2.13.0).

ARG CUDA_VERSION=13.0.3
ARG PYTHON_VERSION=3.12
ARG TORCH_VERSION=2.13.0
ARG TRITON_VERSION=3.7.1
ARG VLLM_VERSION=0.32.0
ARG TRANSFORMER_ENGINE_VERSION=2.20.2
ARG FLASH_ATTN_VERSION=2.8.3.post2
ARG UV_VERSION=0.13.9

FROM ghcr.io/astral-sh/uv:${UV_VERSION} AS uv

# --- CPU ----------------------------------------------------------------------------------------------------------------
FROM python:${PYTHON_VERSION}-slim-bookworm AS cpu
# g++: Triton's launchers. libnuma1: vLLM's CPU backend. Debian's own versions are the right ones, so they are not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home selfemo \
    && install --directory --owner selfemo /workspace
WORKDIR /workspace
COPY requirements requirements
COPY --from=uv /uv /usr/local/bin/uv
RUN uv pip install --system --no-cache --compile-bytecode --index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match \
    --override requirements/overrides.txt -r requirements/cpu.txt -r requirements/demo.txt -r requirements/dev.txt
COPY --chown=selfemo . .
RUN uv pip install --system --no-cache --no-deps . && python tools/check_install.py
USER 10001
ENV OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
HEALTHCHECK --interval=5m --timeout=30s --start-period=1m CMD ["selfemo", "doctor", "--json"]
CMD ["bash", "examples/quickstart_cpu.sh"]

# --- GPU: everything that needs nvcc --------------------------------------------------------------------------------------
FROM nvidia/cuda:${CUDA_VERSION}-cudnn-devel-ubuntu24.04 AS gpu-build
ARG PYTHON_VERSION
ARG TORCH_VERSION
ARG TRITON_VERSION
ARG VLLM_VERSION
ARG TRANSFORMER_ENGINE_VERSION
ARG FLASH_ATTN_VERSION
# Of flash-attn, which alone is compiled for GPUs here: H100 and H200. For B200 build with --build-arg CUDA_ARCHITECTURES="100", for A100 with
# "80", for several with "90;100": each adds minutes and hundreds of megabytes.
ARG CUDA_ARCHITECTURES="90"
# Four jobs of four nvcc threads take 36 GB at flash-attn's own estimate of 9 GB a job (its setup.py, NinjaBuildExtension).
ARG MAX_JOBS=4
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
RUN uv python install "${PYTHON_VERSION}" && uv venv --python "${PYTHON_VERSION}" /opt/venv
WORKDIR /build
COPY requirements requirements
RUN uv pip install "torch==${TORCH_VERSION}" "triton==${TRITON_VERSION}" -r requirements/base.txt \
    ninja==1.13.2 pybind11==3.1.0 setuptools==78.1.1 wheel==0.48.0
# Both compile against the torch just installed: without --no-build-isolation they would fetch another one to build with. Transformer Engine's
# kernels come compiled in transformer-engine-cu13; what is compiled of it is C++ alone, so NVTE_CUDA_ARCHS would do nothing.
# hadolint ignore=DL3059
RUN NVTE_FRAMEWORK=pytorch FLASH_ATTN_CUDA_ARCHS="${CUDA_ARCHITECTURES}" FLASH_ATTENTION_FORCE_BUILD=TRUE NVCC_THREADS=4 \
    uv pip install --no-build-isolation \
    "transformer-engine[pytorch,core_cu13]==${TRANSFORMER_ENGINE_VERSION}" "flash-attn==${FLASH_ATTN_VERSION}"
# A step of its own, so that another vLLM does not compile the two above again. With pytest and its like: `make gpu-check` runs here.
# hadolint ignore=DL3059
RUN uv pip install "vllm==${VLLM_VERSION}" -r requirements/base.txt -r requirements/dev.txt
COPY . .
RUN uv pip install --no-deps .

# --- GPU ------------------------------------------------------------------------------------------------------------------
# devel, not runtime: FlashInfer compiles kernels on first use, and Triton's launchers need a C compiler.
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04 AS gpu
RUN useradd --uid 10001 --create-home selfemo && install --directory --owner selfemo /workspace
COPY --from=gpu-build /opt/python /opt/python
COPY --from=gpu-build /opt/venv /opt/venv
WORKDIR /workspace
COPY --chown=selfemo . .
USER 10001
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 CUDA_DEVICE_MAX_CONNECTIONS=1 PYTORCH_ALLOC_CONF=expandable_segments:True
HEALTHCHECK --interval=5m --timeout=30s --start-period=1m CMD ["selfemo", "doctor", "--json"]
CMD ["selfemo", "doctor"]
