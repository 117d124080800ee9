"""What `results_page.py` is made of: the page of the paper's experiments, from the committed results."""
