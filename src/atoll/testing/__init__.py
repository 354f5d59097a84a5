"""Law kits: what every transform, aggregator, engine and store must obey, for tests of your own."""
