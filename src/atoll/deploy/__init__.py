"""A federation between real machines: the coordinator's half and the site's, around the same job file."""
