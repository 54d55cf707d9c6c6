"""What is said about results: figures, comparisons, tables, plots and pages, all from recorded episodes."""
