"""The world of the built-in model: one to four things on a pale ground, and prompts that say which, how many and where."""
