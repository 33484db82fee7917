"""`PrefixCachedModel`, and Hugging Face's own `generate` loop over the engine's memory."""
