"""Benchmarks of this library against others on the same work: `python -m examples.bench --help`."""
