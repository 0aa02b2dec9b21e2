"""Sheets of images, plots, tables and the sections of the results page."""
