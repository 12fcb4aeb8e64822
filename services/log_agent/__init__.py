"""The log agent: one per host, reads what the allow-list names, answers `logs.<host>.…`."""
