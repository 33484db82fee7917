"""Tiers below the device: the contract, stores, the host tier, the sidecar's client."""
