"""Worker processes that judge answers and can be ended at any moment."""
