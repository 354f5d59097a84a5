"""Codecs: each in a file of its own, composed by `pipe`, their bytes counted on frames (`wire`)."""
