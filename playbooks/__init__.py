"""The built-in playbooks: one TOML file each, read by shared/catalogue.py."""
