"""What Packtrain puts into MLflow where both are installed: MLflow finds it by entry points.

headers      says who asks, in every request of an MLflow client
deployments  ``mlflow deployments create -t packtrain ...``: a version becomes a running vLLM
guard        an app for the MLflow server that refuses moves of protected aliases which no ledger knows, and logs all
"""
