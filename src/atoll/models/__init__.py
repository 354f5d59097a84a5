"""Small models for one's own data, and the shapes of their state without torch."""
