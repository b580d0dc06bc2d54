"""The methods, one room a family; each function is pure and registers itself."""
