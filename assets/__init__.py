"""Dagster assets and their checks, one module a pipeline. Thin: each calls the library once and says what it did."""
