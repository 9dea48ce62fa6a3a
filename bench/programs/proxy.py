"""Packtrain's proxy before one engine that is there: ``python proxy.py PORT ENGINE_PORT``."""

from __future__ import annotations

import signal
import sys

from packtrain.serving.arguments import Endpoint
from packtrain.serving.edge import Edge
from packtrain.serving.metrics import Metrics
from packtrain.serving.proxy import Proxy
from packtrain.serving.traffic import Backend, Traffic

port, engine = map(int, sys.argv[1:])
metrics = Metrics()
proxy = Proxy(Traffic(), metrics, keys=(), hold=60)
with Edge(Endpoint("127.0.0.1", port), proxy, metrics, key="", status=dict) as edge:
    edge.call(edge.traffic.direct, Backend(1, f"http://127.0.0.1:{engine}", "", "m", 1, "sha256:0"))
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
