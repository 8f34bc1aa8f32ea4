"""Examples, benchmarks and measures: each file or folder runs with `python -m examples.NAME`."""
