"""Other projects' structures on our inputs, in our process. Installed packages only; absent ones are skipped."""
