"""Fine-tune few-step text-to-image models with reinforcement learning, on any reward, fast."""

__version__ = "0.1.0"
