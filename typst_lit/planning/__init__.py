"""What a fit will take, told before it begins."""
