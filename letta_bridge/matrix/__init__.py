"""What is said in Matrix: events in, events out, and the texts between people and agents."""
