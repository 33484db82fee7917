"""The demo: several tenants' chat requests over one small model, with the cache and without."""
