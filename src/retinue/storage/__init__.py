"""The store: one database contract, group commit, two engines, numbered migrations, blobs."""
