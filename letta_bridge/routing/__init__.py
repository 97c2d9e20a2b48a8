"""Who may wake whom, and which agents a message is for. Pure functions: no network, no database."""
