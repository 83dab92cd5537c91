"""Measurements of Acorn: `python -m benchmarks` runs all of them and writes one TSV."""
