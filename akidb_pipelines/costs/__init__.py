"""Costs: billing files in (FOCUS), exact money out; forecast against plan, quotas, the bi-weekly review.

Follows the FinOps Foundation's FOCUS, 1.0-preview to 1.4. Money is Decimal from the first byte to the last; floats are for forecasts
and pictures.
"""
