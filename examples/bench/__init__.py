"""This library beside others on the same work: `python -m examples.bench --help`."""
