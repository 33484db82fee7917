"""Whether there is a model or tokenizer of some name: asked once, before transformers asks many times.

transformers tries each of several files six times, and waits between: a mistyped name takes most of a minute where
the hub does not answer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from kvtrie.api.close_names import close_names
from kvtrie.prefix_tree.errors import InputError

TIMEOUT_SECONDS = 5.0
_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model")
"""A cached repository has at least one of these."""
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_FILE_ENDINGS = (".json", ".model", ".gguf")


def is_held_here_alone(name: str, what: str, built_in: Collection[str] = ()) -> bool:
    """True if `name` must be loaded from Hugging Face's cache; False if the hub has it too.

    `what` is what the name is of, such as `tokenizer`; `built_in` are other names that work, for suggestions.

    Raises:
        InputError: there is none of that name here, and the hub has none, does not answer or must not be asked
            (`HF_HUB_OFFLINE`).
        ImportError: huggingface_hub is not installed.
    """
    from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # 1. A path, rather than the name of a repository.
    if not _REPOSITORY.fullmatch(name) or name.endswith(_FILE_ENDINGS):
        raise _missing(name, what, "no such file or folder", built_in)
    # 2. The hub is asked once, unless it must not be.
    here = "no such folder, and not in Hugging Face's cache"
    if is_offline_mode():
        problem = f"{here}; HF_HUB_OFFLINE is set"
    else:
        try:
            HfApi().model_info(name, timeout=TIMEOUT_SECONDS)
            return False
        except HFValidationError:
            raise _missing(
                name, what, "no such file or folder, and no name that the hub could have", built_in
            ) from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            absent = status in (401, 403, 404)
            problem = f"{here}; the hub " + (
                "has none that you may read" if absent else f"answers HTTP {status}"
            )
        # Which errors a connection raises depends on the HTTP library of the installed huggingface_hub.
        except Exception:
            problem = f"{here}; the hub does not answer"
    # 3. Without the hub, what an earlier download left is used.
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in _FILES):
        return True
    raise _missing(name, what, problem, built_in)


def _missing(name: str, what: str, problem: str, built_in: Collection[str]) -> InputError:
    close = close_names(name, [*built_in, *_cached()]) or list(_neighbours(name))
    suggested = f"; did you mean {' or '.join(ascii(other)[1:-1] for other in close)}?" if close else ""
    return InputError(f"there is no {what} {name!a}: {problem}{suggested}")


def _cached() -> Iterator[str]:
    """Models in Hugging Face's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in Path(HF_HUB_CACHE).glob("models--*"):
        yield folder.name.removeprefix("models--").replace("--", "/")


def _neighbours(name: str) -> Iterator[str]:
    """Files and folders beside a mistyped path whose names are like it."""
    path = Path(name)
    try:
        beside = [other.name for other in path.parent.iterdir()]
    except (OSError, ValueError):
        return
    for other in close_names(path.name, beside):
        yield str(path.parent / other)
