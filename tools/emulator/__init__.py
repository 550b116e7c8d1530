"""Programs on processors that this machine does not have."""
