"""``augbench compare``: finished studies side by side, over what their configs vary."""
