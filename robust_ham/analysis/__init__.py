"""Metrics, statistics, contrasts, claims and imported tables: tables in, tables out; no torch."""
