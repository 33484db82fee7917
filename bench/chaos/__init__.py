"""Everything at once over a tiny model and a small pool; every result is compared with the plain model's."""
