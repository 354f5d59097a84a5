"""Where client work runs; every engine agrees with `serial`."""
