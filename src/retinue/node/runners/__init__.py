"""How an attempt is started: as a command of its own, or as a function in a host process."""
