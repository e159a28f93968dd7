"""How the built-in model typst-nano was made: synthetic records, documents in many house styles, pretraining."""
