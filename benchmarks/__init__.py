"""How fast the bridge is, measured side by side with a bare mautrix appservice: ``python -m benchmarks --help``."""
