"""Bad input of every kind: each is one line, an exit code, and nothing half-written."""
