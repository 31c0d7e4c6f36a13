"""Teams: the tenants. Everything belongs to exactly one."""
