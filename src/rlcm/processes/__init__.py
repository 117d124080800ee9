"""One process or many, and what each of them has: shares of the work, memory, the machine."""
