"""Shipped test tools: conformance suites, the simulator and its command."""
