"""Comparisons against peers and limits, as ratios within one run: `make bench`. Never part of the tests: machines differ."""
