"""Packtrain carries fine-tuned models from LLaMA-Factory to vLLM."""

from packtrain._version import __version__

__all__ = ["__version__"]
