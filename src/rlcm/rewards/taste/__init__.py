"""A reward that is learnt from votes: which of these pictures do you like best?"""

from rlcm.rewards.taste.reward import Taste
from rlcm.rewards.taste.votes import Vote, VotesFile, read_votes

__all__ = ["Taste", "Vote", "VotesFile", "read_votes"]
