"""Real servers as child processes: Synapse, Letta, PostgreSQL and a scripted model. Standard library only."""
