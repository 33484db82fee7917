"""What reads a snapshot (explain, filters, sums) and what this machine has."""
