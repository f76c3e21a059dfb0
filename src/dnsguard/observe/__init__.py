"""What an operator sees: events, logs, metrics."""
