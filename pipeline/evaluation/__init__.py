"""Evaluation: from kept weights, or from the images themselves, to metrics and to the results of each query."""
