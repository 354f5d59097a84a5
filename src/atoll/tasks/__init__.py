"""Tasks: a model, what it is trained to do, and how it is judged."""
