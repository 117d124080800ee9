"""What a person types: commands, what they do, and what they print."""

import logging

from rlcm.cli.commands import main

# What torchao, where it is installed, says when peft or diffusers import it, whether it is used or not.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)

__all__ = ["main"]
