"""Training of the embedded CLIPs and prior; their weights and cards lie in `toybox/weights`."""
