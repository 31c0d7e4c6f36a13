"""The bus: motion. What it carries are hints and live traffic; what must not be lost is in the store."""
