"""The mirror: every agent of the configured Letta gets a puppet, a portal and a place in the space."""
