"""Measures promptmill beside what else one could use: `python -m bench`. docs/benchmarks.md explains the figures."""
