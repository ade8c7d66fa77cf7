"""The report of an evaluation: one HTML page that needs nothing else, in English and Chinese."""
