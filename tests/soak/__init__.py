"""The soak: faults at random moments of a small real sweep, the same commands again, and nothing lost or doubled."""
