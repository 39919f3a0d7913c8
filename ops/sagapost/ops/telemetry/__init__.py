"""OpenTelemetry: metrics and traces of relays and consumers. Needs the extra `otel`."""

from sagapost.ops.telemetry.metrics import OpenTelemetryMetrics
from sagapost.ops.telemetry.tracing import OpenTelemetryTracing

__all__ = ["OpenTelemetryMetrics", "OpenTelemetryTracing"]
