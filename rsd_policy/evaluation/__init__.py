"""Which episodes an evaluation consists of, how they are run and counted, and where they are kept."""
