"""Nodes: the enrolled daemons, what they offer and whether they are there."""
