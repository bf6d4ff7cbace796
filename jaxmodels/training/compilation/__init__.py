"""What a compiled training step needs, without running it: memory, collectives, arithmetic, traffic."""
