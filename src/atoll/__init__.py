"""Atoll trains and fine-tunes models, large ones above all, across data that may not move."""
