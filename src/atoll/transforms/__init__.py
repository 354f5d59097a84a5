"""Mechanisms that attach to any algorithm: clipping, casting, compression, privacy; one file each."""
