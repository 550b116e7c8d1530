"""The parts of a query: what was asked, which rows may answer, which of them is the reference itself."""
