"""Accuracy of a bundle under a named protocol: recall, drift, submissions, failures as pictures."""
