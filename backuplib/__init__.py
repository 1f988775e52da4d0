"""The parts that backup and restore stand on, one subject a module. Nothing here imports the scripts above."""

__version__ = "1.0.0"
