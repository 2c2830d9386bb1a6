"""The labelling page and the owner's page: plain HTML forms, enhanced if the browser runs scripts."""

from rlhf_lightning.feedback.pages.app import make_app

__all__ = ["make_app"]
