"""What `voters.py` is made of: what the voters like, a voter, the trainings, and the page."""
