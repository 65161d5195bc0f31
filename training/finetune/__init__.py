"""``foresound finetune``: from a YAML file to one folder that ``--model`` takes."""
