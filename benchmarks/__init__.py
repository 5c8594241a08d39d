"""Speed and memory against the plain libraries; run from the root of the repository, `python -m benchmarks.NAME`."""
