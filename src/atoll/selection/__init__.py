"""Which clients a round asks: rules that reorder the candidates and learn from what the chosen ones tell."""
