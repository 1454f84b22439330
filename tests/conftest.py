"""Fixtures that several test files share: tiny models and folders of tiny parts, made once a run."""
