"""Every measurement behind a number in the documentation; README.md beside this file says what makes which page."""
