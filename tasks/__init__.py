"""lm-eval task YAML of xtransplant, installed as `xtransplant.tasks`; also a folder for `--include_path`."""
