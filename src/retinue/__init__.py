"""Retinue runs agents on every machine you own, as one fleet."""

__version__ = "0.1.0"
