"""MLflow's own upload of artifacts: push_mlflow.py URI DIRECTORY"""

import sys

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

get_artifact_repository(sys.argv[1]).log_artifacts(sys.argv[2])
