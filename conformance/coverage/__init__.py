"""What a run has visited of what it could reach, and what it is worth that an example passed."""
