"""Hydra configuration of xtransplant, installed as the package `xtransplant.conf`."""
