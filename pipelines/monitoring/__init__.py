"""A run while it runs: progress, logs, telemetry, bottleneck analysis."""
