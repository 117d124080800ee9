"""Rewards that check a picture against what was asked: objects, counts, colours and places by a detector, words by reading."""
