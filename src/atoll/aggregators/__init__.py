"""How updates become one tree; one file a family."""
