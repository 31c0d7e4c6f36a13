"""Tasks: durable units of work with a result."""
