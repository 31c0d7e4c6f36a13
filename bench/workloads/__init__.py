"""One file a workload: a `TITLE`, a `UNIT`, and `run() -> float`."""
