"""What a supervisor counts, for Prometheus. docs/serving.md lists it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LONG = (0.1, 1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)  # seconds, of switches

OUTCOMES = ("complete", "refused", "failed", "broken", "cancelled")


class Metrics:
    """``version`` is the number of the version. Series of a version appear with its first event."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.accepted = Counter("packtrain_requests_accepted", "Requests that were read", registry=r)
        self.requests = Counter(
            "packtrain_requests",
            "Requests that ended: complete; refused (the client's fault, 4xx); failed (an error was the answer); "
            "broken (an answer that had begun ended with an error); cancelled by the client",
            ["version", "outcome"],
            registry=r,
        )
        self.retries = Counter("packtrain_request_retries", "Requests sent again to an engine", registry=r)
        self.in_flight = Gauge("packtrain_requests_in_flight", "Requests that an engine has", ["version"], registry=r)
        self.waiting = Gauge("packtrain_requests_waiting", "Requests that wait for an engine", registry=r)
        self.first_byte = Histogram(
            "packtrain_time_to_first_byte_seconds",
            "From a request to the first byte of its streamed answer",
            ["version"],
            buckets=SECONDS,
            registry=r,
        )
        self.latency = Histogram(
            "packtrain_request_duration_seconds",
            "From a request to the end of its answer",
            ["version"],
            buckets=SECONDS,
            registry=r,
        )
        self.serving = Gauge(
            "packtrain_serving", "1 for the version that serves", ["model", "version", "digest"], registry=r
        )
        self.ready = Gauge("packtrain_ready", "Whether new requests go to an engine", registry=r)
        self.switches = Counter("packtrain_switches", "Switches to another version", ["strategy"], registry=r)
        self.switch_seconds = Histogram(
            "packtrain_switch_duration_seconds",
            "From a version being named to its taking traffic",
            buckets=LONG,
            registry=r,
        )
        self.went_back = Counter("packtrain_rollbacks", "Versions that were left because they failed here", registry=r)
        self.went_back_seconds = Histogram(
            "packtrain_rollback_duration_seconds",
            "From a version's failure to the one before taking traffic; 0 if it never stopped",
            buckets=LONG,
            registry=r,
        )
        self.gates = Counter("packtrain_gates", "Gates", ["result"], registry=r)
        self.gate_seconds = Histogram("packtrain_gate_duration_seconds", "Gates", buckets=LONG, registry=r)
        self.gate_distance = Gauge(
            "packtrain_gate_distance_nats", "Between a version's answers and its golden ones", ["version"], registry=r
        )
        self.restarts = Counter("packtrain_engine_failures", "Engines that failed or died", registry=r)
        self.without_service = Counter(
            "packtrain_without_service_seconds",
            "Time in which no engine took requests, after the first",
            registry=r,
        )
        self.blind = Gauge("packtrain_registry_unreachable_seconds", "For how long, 0 if it is reachable", registry=r)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def now_serves(self, model: str, version: int | None, digest: str) -> None:
        self.serving.clear()
        if version is not None:
            self.serving.labels(model, str(version), digest).set(1)
