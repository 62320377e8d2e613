"""Retrieval and clustering metrics, exact."""
