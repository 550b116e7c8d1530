"""What commands print and how: arguments, tables, progress, words that any terminal can show."""
