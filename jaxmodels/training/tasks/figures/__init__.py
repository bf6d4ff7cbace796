"""Figures for the report."""
