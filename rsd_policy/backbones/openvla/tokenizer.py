"""Instruction -> prompt -> token ids, as the checkpoint's own tokeniser and the reference's processor give them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rsd_policy.errors import CheckpointError, ObservationError, SetupError

TOKENIZER = "tokenizer.json"

EMPTY_TOKEN = 29871
"""Llama's token of a lone space; training prompts end with it, since the action follows `Out: `."""

MAX_PROMPT_TOKENS = 512
"""Longer prompts are refused: training prompts have a few dozen tokens, and memory grows with the length."""


def build_prompt(instruction: str) -> str:
    """The prompt of both models' training: `In: What action should the robot take to {instruction}?\\nOut:`."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class PromptTokenizer:
    """A checkpoint's own tokeniser, read by `transformers` from the checkpoint's directory; none of its code is run.

    `PreTrainedTokenizerFast` takes the rules of `tokenizer.json` as they are. So did `LlamaTokenizerFast` in the
    models' training (transformers 4.40); in transformers 5 that class has rules of its own.

    Args:
        directory: holds the file.
        vocabulary_size: rows of the token embedding.
        bos_token: id that every prompt starts with.

    Raises:
        SetupError: the package `transformers` is not installed.
        CheckpointError: the file is missing or unreadable.
    """

    def __init__(self, directory: Path, vocabulary_size: int, bos_token: int) -> None:
        try:
            from transformers import PreTrainedTokenizerFast
        except ImportError as error:
            raise SetupError(
                "OpenVLA needs the package 'transformers'; ./rsd setup brings it, and so does the extra [openvla]"
            ) from error
        path = directory / TOKENIZER
        if not path.is_file():
            raise CheckpointError(
                f"{path}: file is missing; public checkpoints have it. Save the tokeniser again with transformers' "
                "LlamaTokenizerFast.save_pretrained"
            )
        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # the package raises plain Exception
            raise CheckpointError(f"{path}: not a tokeniser file: {error}; fetch the checkpoint again") from error
        self._vocabulary_size = vocabulary_size
        self._bos_token = bos_token
        self._encode = lru_cache(maxsize=64)(self._encode_once)

    def __call__(self, instruction: str) -> tuple[int, ...]:
        """Ids of an instruction's prompt, from the start token to EMPTY_TOKEN.

        Raises:
            ObservationError: the prompt is longer than MAX_PROMPT_TOKENS.
            CheckpointError: the tokeniser gives an id that the model has no embedding for.
        """
        return self._encode(instruction)

    def _encode_once(self, instruction: str) -> tuple[int, ...]:
        # The start token is added here and not by the file's post-processor, as transformers' Llama tokeniser does.
        ids = [self._bos_token, *self._tokenizer.encode(build_prompt(instruction), add_special_tokens=False)]
        if ids[-1] != EMPTY_TOKEN:
            ids.append(EMPTY_TOKEN)
        if len(ids) > MAX_PROMPT_TOKENS:
            raise ObservationError(
                f"instruction: expected a prompt of at most {MAX_PROMPT_TOKENS} tokens, got {len(ids)}; shorten it"
            )
        if max(ids) >= self._vocabulary_size:
            raise CheckpointError(
                f"{TOKENIZER}: token {max(ids)} is beyond the model's {self._vocabulary_size} embeddings; "
                "the tokeniser belongs to another model"
            )
        return tuple(ids)
