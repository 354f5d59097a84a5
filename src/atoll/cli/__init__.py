"""The command line: each command reads its words, calls the library and prints; nothing else lives here."""
