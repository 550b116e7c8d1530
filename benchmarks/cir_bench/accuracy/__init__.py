"""Accuracy of a bundle under a named protocol: measurement, submissions, failures as pictures."""
