"""Statistics as functions of numbers: spread, verdicts on printed numbers, contrasts of rows, power, and the bootstrap
over classes. Distributions come from scipy. Numbers may have any unit, as long as all have the same; the callers use
points (percent)."""
