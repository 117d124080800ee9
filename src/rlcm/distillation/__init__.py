"""From a diffusion pipeline to its few-step form."""
