"""The simulator: a whole fleet's real code in one thread, under virtual time, chance from a seed, and faults."""
