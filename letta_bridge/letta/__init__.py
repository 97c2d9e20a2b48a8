"""Letta behind one interface. Nothing in here knows of Matrix."""
