"""Alerts without Prometheus: which there are (`table`, alerts.yaml), which are on (`decide`), who is told (`sender`, `ledger`)."""
