"""What a user reads and looks at."""
