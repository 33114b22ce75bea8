"""The paper's tables, measured: `python -m benchmarks.paper`."""
