"""Benchmarks: each writes data to benchmarks/results, never prose."""
