"""Whether a machine is fit for the runs: its device, its engines, its disk. `pipeline.doctor` reports it."""
