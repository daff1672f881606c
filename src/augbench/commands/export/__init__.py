"""``augbench export``: write a training set of a finished study, so that others train on it."""
