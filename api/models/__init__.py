"""What kvtrie knows of a Hugging Face model, and how it runs one."""
