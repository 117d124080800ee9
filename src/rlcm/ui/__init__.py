"""The page in a browser: looks at the runs of a folder, draws with them, and starts, stops and resumes them."""
