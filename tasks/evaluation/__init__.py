"""Evaluation: how well the engine tells people apart, measured on labelled pairs of pictures.

Knows neither Prefect nor SQL. `rates.py` and `charts.py` need kycflow's extra `evaluate`.
"""
