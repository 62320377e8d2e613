"""The content of tables, and their formats."""
