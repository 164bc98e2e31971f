"""Real clusters on one machine: SLURM's daemons with two virtual nodes, and a Ray of two nodes, under faults."""
