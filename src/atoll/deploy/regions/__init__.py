"""Hierarchy: a relay, which aggregates a region and speaks upward as one client."""
