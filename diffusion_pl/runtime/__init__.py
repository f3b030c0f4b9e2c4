"""The process around a run or a command: errors, signals, devices, folders, logs, provenance."""
