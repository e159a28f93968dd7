"""Generating elsewhere than in this process: on a cluster of Ray, with vLLM."""
