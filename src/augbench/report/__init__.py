"""Tables and figures: from the results of the runs to what a paper shows."""
