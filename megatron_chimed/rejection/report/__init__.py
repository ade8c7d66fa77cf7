"""What the rounds of rejection sampling did, in numbers, text and plots. Read `summary` first."""
