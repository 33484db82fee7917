"""Facts about a Hugging Face model: is it served, what identifies it, and how it runs on kvtrie's attention."""
