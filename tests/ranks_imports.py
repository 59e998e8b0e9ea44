"""What ranks import and the session does not; done once, by the process that ranks are forked from."""

import gc
import os

os.environ["GLOO_SOCKET_IFNAME"] = "lo"
# These ranks are a CPU's also on a machine with a GPU, where NCCL would refuse two of them on one device.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

import megatron_rl.actor.conversion
import megatron_rl.actor.megatron_actor
import megatron_rl.actor.saving  # noqa: F401

torch.set_num_threads(1)
# Leaving the ranks collects garbage: none of it is among what was imported, and looking there takes most of the time.
gc.collect()
gc.freeze()
