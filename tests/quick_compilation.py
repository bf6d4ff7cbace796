"""How tests compile: with less work than users, whose programs are large and few. Those of the tests are small and many."""

from importlib.metadata import version


JAXLIB = tuple(int(part) for part in version("jaxlib").split(".")[:2])
# From jaxlib 0.11 on there is nothing but fusion emitters: it ends the process at the flag and refuses the option.
HAS_SWITCH = JAXLIB < (0, 11)

# For the environment variable XLA_FLAGS, read when jax first looks for its devices. To compile a program in up to 32
# parts, and with fusion emitters, takes twice the time where it is small.
FLAGS = " ".join(
    ["--xla_cpu_parallel_codegen_split_count=1"] + ["--xla_cpu_use_fusion_emitters=false"] * HAS_SWITCH
)

# Compiler options that bring the emitters back for one program.
AS_USERS = {"xla_cpu_use_fusion_emitters": True} if HAS_SWITCH else {}
