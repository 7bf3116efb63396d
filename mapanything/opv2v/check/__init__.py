"""Everything that can be wrong with a data set: `run.run_checks` finds all of it and gives a `report.Report`."""
