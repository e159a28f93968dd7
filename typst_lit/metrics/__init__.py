"""How good a generated document is."""
