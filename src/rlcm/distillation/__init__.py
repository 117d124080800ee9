"""From a diffusion pipeline to its few-step form: the loss, the loop that trains with it, and the command."""

from rlcm.distillation.loss import Distiller, NoiseSchedule, guidance_embedding, student_of

__all__ = ["Distiller", "NoiseSchedule", "guidance_embedding", "student_of"]
