"""Whether everything that Packtrain needs here is there and does what it must, and what to do where it does not.

check        one thing that was looked at, and how it is
program      this program, its settings and its variables
store        the store, its credentials, and whether it keeps the laws that ledgers rest on
ledgers      chains, what interrupted publishes left, and links, which are mended
mlflow       the MLflow server, whether it takes our versions, and what it shows
cache_disk   the disk of the cache
engines      vLLM and LLaMA-Factory
disks        what a file system is

Each looks by itself and yields a check a line; none raises a PacktrainError. What is only looked at stays as it was;
the store is tried out with probes under ``doctor/``, which are removed again.
"""

from packtrain.flows.doctor.check import FAILURE, OK, WARNING, Check

__all__ = ["FAILURE", "OK", "WARNING", "Check"]
