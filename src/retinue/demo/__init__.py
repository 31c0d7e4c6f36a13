"""The demonstration: real work over a git repository, fanned out as tasks that run `python -m retinue.demo`."""
