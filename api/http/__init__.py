"""What any server here needs: addresses, listeners, limits of connections and bytes, tenants, record frames."""
