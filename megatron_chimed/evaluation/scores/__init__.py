"""Pure functions of texts and numbers: answers read, texts compared, intervals, tests."""
