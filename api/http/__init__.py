"""Parts that any HTTP server here needs: addresses, listeners, limits of connections and bytes, tenants, record
frames."""
