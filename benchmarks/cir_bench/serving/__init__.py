"""What HTTP costs, and what a service does when more is asked than it can do."""
