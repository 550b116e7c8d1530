"""Whether explanations are true: on generated scenes it is known which object of a hit the text is about."""
