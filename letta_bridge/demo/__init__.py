"""``make demo``: a homeserver, a real Letta, three agents, the bridge and a person, on this machine."""
