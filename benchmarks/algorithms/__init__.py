"""The study of algorithms on the built-in model; see README.md beside this file."""
