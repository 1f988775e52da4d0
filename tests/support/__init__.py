"""What the tests stand on: real keys, a real shop folder, a real terminal, real containers. Fixtures: conftest.py."""
