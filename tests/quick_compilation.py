"""XLA's fusion emitters take most of the compilation of small programs: the tests switch them off where they can."""

from importlib.metadata import version


JAXLIB = tuple(int(part) for part in version("jaxlib").split(".")[:2])
# From jaxlib 0.11 on there is nothing but the emitters: it ends the process at the flag and refuses the option.
HAS_SWITCH = JAXLIB < (0, 11)

# For the environment variable XLA_FLAGS, read when jax first looks for its devices.
WITHOUT_EMITTERS = "--xla_cpu_use_fusion_emitters=false" if HAS_SWITCH else ""

# Compiler options that undo the flag for one program.
AS_USERS = {"xla_cpu_use_fusion_emitters": True} if HAS_SWITCH else {}
