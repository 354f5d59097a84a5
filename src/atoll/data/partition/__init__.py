"""How one data set is divided among clients: one rule a module."""
