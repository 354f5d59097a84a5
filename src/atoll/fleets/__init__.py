"""Who the devices of a simulated federation are: their speeds, their links, when they are there, what they draw."""
