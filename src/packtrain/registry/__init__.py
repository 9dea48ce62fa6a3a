"""Where registered models are kept: the ledger in the store itself, with nothing to run.

ledger   the events, and what others have added to them
memory   what this machine has seen of them
mlflow   the REST API of an MLflow server, which shows ledgers (packtrain.flows.mirroring)
"""
