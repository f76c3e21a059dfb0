"""The configuration file: typed settings, and where in the file each value stands."""
