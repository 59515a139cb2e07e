"""What Prometheus may ask for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from openmai.infer.engine import Engine

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """The server's metrics, in a registry of their own."""

    def __init__(self, engine: Engine | None) -> None:
        self.registry = CollectorRegistry()
        self.first_token = Histogram(
            "openmai_time_to_first_token_seconds", "From request to first token", buckets=SECONDS, registry=self.registry
        )
        self.between = Histogram(
            "openmai_inter_token_seconds", "From token to token of one answer", buckets=SECONDS, registry=self.registry
        )
        self.queued = Histogram("openmai_queue_seconds", "From request to its place in the batch", buckets=SECONDS, registry=self.registry)
        self.whole = Histogram("openmai_request_seconds", "From request to last token", buckets=SECONDS, registry=self.registry)
        self.requests = Counter("openmai_requests", "Requests by route and status", ["route", "status"], registry=self.registry)
        self.open = Gauge("openmai_open_requests", "Requests that are not finished", registry=self.registry)
        if engine is not None:
            self.registry.register(_EngineCollector(engine))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engine's own counts when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[Metric]:
        stats, (running, waiting) = self.engine.stats, self.engine.load()
        gauges = {
            "running_requests": (running, "Requests that are being answered"),
            "waiting_requests": (waiting, "Requests that wait for a row or for blocks"),
            "cache_blocks": (stats.blocks, "Blocks of the key-value cache"),
            "cache_used_blocks": (stats.used_blocks, "Blocks of requests that are being answered"),
        }
        counters = {
            "prompt_tokens": (stats.asked, "Tokens of prompts admitted"),
            "prefix_hit_tokens": (stats.reused, "Tokens of prompts found in the cache"),
            "generated_tokens": (stats.generated, "Tokens generated"),
            "guessed_tokens": (stats.guessed, "Tokens guessed by speculation"),
            "guessed_right_tokens": (stats.kept, "Guesses that were right"),
            "preemptions": (stats.preemptions, "Requests that had to give up their blocks"),
            "steps": (stats.steps, "Forward passes"),
        }
        return [
            *(GaugeMetricFamily(f"openmai_{name}", text, value=value) for name, (value, text) in gauges.items()),
            *(CounterMetricFamily(f"openmai_{name}", text, value=value) for name, (value, text) in counters.items()),
        ]
