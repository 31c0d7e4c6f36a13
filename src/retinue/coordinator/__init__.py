"""The coordinator: it admits nodes, hands out work, keeps what they report, and answers people."""
