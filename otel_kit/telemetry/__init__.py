"""Providers, processors and export of the three signals; knows nothing of jobs or frameworks."""
