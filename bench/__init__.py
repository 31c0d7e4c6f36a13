"""Benchmarks: what a stranger can read and repeat. Figures are printed, never asserted."""
