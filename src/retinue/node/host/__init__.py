"""Host processes: children of a node in which authors' functions run. Started by the node, never imported by it."""
