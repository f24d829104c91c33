"""One failure: as a text, as an exception, as a record; and what is known of ranks that were lost."""
