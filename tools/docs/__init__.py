"""The documents: their figures measured, their pictures drawn, their site built."""
