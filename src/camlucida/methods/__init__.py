"""The methods, one file a family: each function is pure and registers itself. A file with a leading _ is a helper."""
