"""How the world's model is made: pictures, autoencoder, detectors, teacher and student, and what they are worth."""
