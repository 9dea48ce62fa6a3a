"""An app for the MLflow server: ``mlflow server --app-name packtrain``, or ``packtrain-basic-auth`` with its log-in.

It refuses to move an alias that the policy of a model protects, unless the ledger says so; and it logs who moved which
alias from where to where, one line of JSON for each, to the logger ``packtrain.mlflow``. The ledger is read from the
store that PACKTRAIN_STORE names, with the server's own credentials. While that cannot be reached, what was read last
counts: MLflow does not stop with the bucket, and whoever looks at the model later undoes what should not have been.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from packtrain.errors import PacktrainError
from packtrain.model.ledger import State
from packtrain.plugins.headers import ACTOR
from packtrain.ports import Registry

logger = logging.getLogger("packtrain.mlflow")
_PATHS = ("/api/2.0/mlflow/registered-models/alias", "/ajax-api/2.0/mlflow/registered-models/alias")


def create_app(app: Any = None) -> Any:
    """The MLflow server with our guard."""
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import create_fastapi_app

    guarded = app or flask_app
    _install(guarded)
    return create_fastapi_app(guarded)


def create_app_with_basic_auth(app: Any = None) -> Any:
    """The same behind MLflow's basic authentication: who is not let in does not reach the guard."""
    from mlflow.server import app as flask_app
    from mlflow.server.auth import create_app as with_auth

    guarded = app or flask_app
    made = with_auth(guarded)
    _install(guarded)
    return made


def _install(app: Any) -> None:
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    guard = Guard(_ledger())
    app.before_request(guard.before)
    app.after_request(guard.after)


def _ledger() -> Registry:
    """The ledgers of the store, read only."""
    import os
    from pathlib import Path

    from packtrain.client import Silent
    from packtrain.settings import load
    from packtrain.wiring import wire

    settings = load({"registry": "store"}, environ=os.environ, directory=Path.cwd())
    return wire(settings, Silent()).registry


class Guard:
    """What is done before and after each request."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def before(self) -> Any:
        from flask import g, jsonify, request

        if request.path not in _PATHS or request.method not in ("POST", "DELETE"):
            return None
        asked = request.get_json(silent=True) or request.args
        name, alias, version = (str(asked.get(key) or "") for key in ("name", "alias", "version"))
        number = int(version) if request.method == "POST" and version.isdecimal() else None
        g.packtrain = {
            "name": name,
            "alias": alias,
            "from": _shown(name, alias),
            "to": number,
            "actor": request.authorization.username if request.authorization else request.headers.get(ACTOR),
        }
        state = self._state(name)
        if alias not in state.policy.protected or state.current(alias) == number:
            return None
        g.packtrain["refused"] = True
        where = state.current(alias) or "not set"
        answer = jsonify(
            error_code="PERMISSION_DENIED",
            message=f"@{alias} of {name} is protected, and its ledger says that it is {where}. Move it with: "
            f"packtrain promote {name}/{number or 'VERSION'} --to {alias}",
        )
        answer.status_code = 403
        return answer

    def after(self, response: Any) -> Any:
        from flask import g

        if move := g.pop("packtrain", None):
            logger.info(json.dumps({"event": "alias", "status": response.status_code, **move}))
        return response

    def _state(self, name: str) -> State:
        try:
            return self._registry.read(name).state
        except PacktrainError as error:
            logger.warning(json.dumps({"event": "ledger", "name": name, "error": str(error)}))
            return self._registry.remembered(name).state


def _shown(name: str, alias: str) -> int | None:
    """Where MLflow has an alias now."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_model_registry_store

    try:
        found = _get_model_registry_store().get_registered_model(name).aliases.get(alias)
    except MlflowException:
        return None
    return int(found) if found else None
