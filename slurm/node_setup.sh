# Sourced on every node before anything runs there. Edit for your cluster: modules, caches, network interfaces.

# The environment of `make install`; inside a container whatever it brings is used.
if [ -x .venv/bin/megatron-rl ]; then
    PATH="$PWD/.venv/bin:$PATH"
fi
export PATH
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# One copy engine queue: communication must start in the order it was asked for, for tensor parallelism to overlap.
export CUDA_DEVICE_MAX_CONNECTIONS=1
# A rank that dies takes its peers' collectives down at once instead of after the NCCL timeout.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
