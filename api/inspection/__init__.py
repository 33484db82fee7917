"""Readers of a snapshot (explain, filters, figures), and what is installed on this machine."""
