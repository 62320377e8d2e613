"""Tests, one file for each module of pipeline/ and bench/."""
