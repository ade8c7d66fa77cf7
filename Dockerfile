# The project on a CUDA base, with its kernels compiled for sm_80 and sm_90.
#
#     docker build -t megatron_chimed .
#     docker run --gpus all --ipc host --network host -v "$PWD/runs:/workspace/runs" -it megatron_chimed
#
# The CUDA version must be one that the pinned torch has a build for; TORCH_INDEX names that build's
# index. --ipc host: NCCL and the data loaders use shared memory. --network host: tools/launch.py
# listens on the node's own interfaces.
ARG CUDA_VERSION=13.0.1
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
ENV DEBIAN_FRONTEND=noninteractive \
    LANG=C.UTF-8 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
COPY . .

# BUILD_CUDA=1 fails the build where nvcc is missing, instead of leaving the CUDA kernels out.
RUN BUILD_CUDA=1 make install TORCH_INDEX="${TORCH_INDEX}"

# Activates .venv: all commands of README.md work as they are printed.
ENV VIRTUAL_ENV=/workspace/.venv
ENV PATH=${VIRTUAL_ENV}/bin:${PATH}

CMD ["bash"]
