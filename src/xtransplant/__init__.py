"""Cross-lingual activation transplantation, evaluated with lm-evaluation-harness. Cheap to import."""

__version__ = "0.1.0.dev0"
