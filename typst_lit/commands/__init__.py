"""The small commands: those that are not a run of the trainer. Each module has ``parser()`` and ``run(args)``."""
