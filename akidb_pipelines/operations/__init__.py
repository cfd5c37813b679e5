"""The layer around Dagster: who may do what, metrics, alerts, how runs are started and forgotten. It knows Dagster, as assets do."""
