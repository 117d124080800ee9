"""The recipe of the built-in model: from an emoji font to the packaged weights."""
