"""The node: an enrolled daemon that dials out, runs attempts in processes of their own, and reports."""
