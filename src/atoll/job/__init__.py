"""Job files: a federation as a page of TOML, read, checked as a whole, and built."""
