"""Rewards that are scored elsewhere: the client, the server, and what travels between them."""
