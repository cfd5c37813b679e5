"""Metrics for Prometheus: facts as families (`families`), served over HTTP (`serve`)."""
