"""The typed client: what programs, the CLI and nodes speak to a coordinator with."""
