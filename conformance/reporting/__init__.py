"""What a run tells: failures, tables, and what is known of lost ranks."""
