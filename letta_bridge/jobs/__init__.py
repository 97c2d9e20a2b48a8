"""Work of several steps that outlives a restart: each step is recorded, tried again, or taken back."""
