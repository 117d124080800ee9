"""What the commands do, a file a kind of work; imported only by the command that runs."""
