"""What a table says, and how it is written."""
