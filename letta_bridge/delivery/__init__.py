"""The durable way of a message: inbox, lanes, turns, renderer, outbox."""
