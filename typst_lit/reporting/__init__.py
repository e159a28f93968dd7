"""What an evaluation leaves to look at."""
