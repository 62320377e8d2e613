"""Evaluation: from kept weights, or from the images themselves, to metrics and to what each query found."""
