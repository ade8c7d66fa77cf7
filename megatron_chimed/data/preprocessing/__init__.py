"""Text files to `.bin/.idx`, in parallel, resumable at any byte. Read `preprocess` first."""
