"""The local report: one page that opens from disk, with every table, chart and run of some records."""
