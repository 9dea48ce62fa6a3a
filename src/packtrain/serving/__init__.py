"""The vLLM engine: what to start it with, starting it, and staying in front of it until it ends."""

from packtrain.serving.arguments import Arguments
from packtrain.serving.supervisor import supervise
from packtrain.serving.vllm import Adapter, Launch, adapter_rank, command_line, exec_vllm, find_vllm

__all__ = [
    "Adapter",
    "Arguments",
    "Launch",
    "adapter_rank",
    "command_line",
    "exec_vllm",
    "find_vllm",
    "supervise",
]
