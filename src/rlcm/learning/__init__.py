"""From rewards to optimiser steps: advantages, losses, updates."""
