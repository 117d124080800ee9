"""How the built-in model was made, from an emoji font to the weights in the package."""
