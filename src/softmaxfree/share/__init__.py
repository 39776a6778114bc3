"""Trained models on the model hub: the folder that timm and transformers read, its card, and the way there."""

from softmaxfree.share.card import model_card
from softmaxfree.share.folder import write_folder
from softmaxfree.share.hub import check_repository, upload

__all__ = ["check_repository", "model_card", "upload", "write_folder"]
