"""The language model: backbone, adapter, loss, training steps, generation."""
