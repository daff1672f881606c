"""Tables, figures and the report page, made from the results of the runs."""
