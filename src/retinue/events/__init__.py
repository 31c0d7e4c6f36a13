"""Events: facts in the past tense, in commit order, gap-free per team; also the audit record."""
