"""The tenants file, and what each caller may do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kvtrie.api.http.tenants import Tenants, load_tenants
from kvtrie.prefix_tree.errors import AccessDenied, InputError

FILE = f"""
[admin]
api_key = "admin-key"
[tenants.acme]
api_key = "acme-key"
reads = ["tools", "faq"]
writes = ["tools"]
[tenants.bolt]
api_key_sha256 = "{hashlib.sha256(b"bolt-key").hexdigest()}"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tenants.toml"
    path.write_text(text)
    return path


class TestAuthenticate:
    def test_each_key_finds_its_caller(self, tmp_path: Path) -> None:
        tenants = load_tenants(written(tmp_path, FILE))
        for key, name in (("acme-key", "acme"), ("bolt-key", "bolt"), ("admin-key", "admin")):
            found = tenants.authenticate(f"Bearer {key}")
            assert found is not None
            assert found.name == name
            assert found.is_admin == (name == "admin")

    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer ", "Bearer acme-ke", "Basic acme-key", "Bearer \udce9"],
    )
    def test_nobody_else(self, tmp_path: Path, header: str | None) -> None:
        assert load_tenants(written(tmp_path, FILE)).authenticate(header) is None

    def test_an_open_sidecar_knows_one_tenant(self) -> None:
        found = Tenants().authenticate(None)
        assert found is not None
        assert (found.name, found.is_admin, found.reading("any")) == ("default", True, "shared:any")

    def test_no_secret_shows(self, tmp_path: Path) -> None:
        assert (
            hashlib.sha256(b"acme-key").digest() not in repr(load_tenants(written(tmp_path, FILE))).encode()
        )
        assert "acme" not in repr(load_tenants(written(tmp_path, FILE)))


class TestScopes:
    def test_own_and_listed_ones(self, tmp_path: Path) -> None:
        acme = load_tenants(written(tmp_path, FILE)).authenticate("Bearer acme-key")
        assert acme is not None
        assert acme.reading(None) == acme.writing(None) == "tenant:acme"
        assert acme.reading("faq") == "shared:faq"
        assert acme.writing("tools") == "shared:tools"
        assert acme.visible() == {"tenant:acme", "shared:tools", "shared:faq"}
        for refused in (lambda: acme.writing("faq"), lambda: acme.reading("other"), lambda: acme.reading("")):
            with pytest.raises(AccessDenied):
                refused()

    def test_the_admin_sees_all_and_has_no_records(self, tmp_path: Path) -> None:
        admin = load_tenants(written(tmp_path, FILE)).authenticate("Bearer admin-key")
        assert admin is not None
        assert admin.visible() is None
        with pytest.raises(AccessDenied):
            admin.reading(None)


class TestMalformed:
    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("", "[tenants]"),
            ("tenants = 3", "[tenants] must be a table"),
            ("[tenants]\nacme = 3", "[tenants.acme] must be a table"),
            ("[tenants.acme]", "needs either api_key or api_key_sha256"),
            ('[tenants.acme]\napi_key = "a"\napi_key_sha256 = "b"', "needs either"),
            ("[tenants.acme]\napi_key = 3", "[tenants.acme] api_key must be a string"),
            ('[tenants.acme]\napi_key = ""', "api_key"),
            ('[tenants.acme]\napi_key = "with space"', "api_key"),
            ('[tenants.acme]\napi_key_sha256 = "abc"', "api_key_sha256"),
            ('[tenants.acme]\napi_key = "k"\nread = ["x"]', "'read'"),
            ('[tenants.acme]\napi_key = "k"\nreads = "tools"', "'tools'"),
            ('[tenants.acme]\napi_key = "k"\nreads = ["a:b"]', "'a:b'"),
            ('[tenants.acme]\napi_key = "k"\nreads = [3]', "3"),
            ('[tenants.acme]\napi_key = "k"\nwrites = ["tools"]', "['tools'] without reading"),
            ('[tenants."a b"]\napi_key = "k"', "[tenants.a b] is no name"),
            ('[tenants.a]\napi_key = "k"\n[tenants.b]\napi_key = "k"', "[tenants.b] has the same key as a"),
            ('[tenants.a]\napi_key = "k"\n[admin]\napi_key = "k"', "same key"),
            ('[other]\n[tenants.a]\napi_key = "k"', "'other'"),
            ("[tenants", "not TOML"),
            ('[tenants.a]\napi_key = "k"\nshare = "many"', "[tenants.a] share: size 'many'"),
            ('[tenants.a]\napi_key = "k"\nquota = [1]', "[tenants.a] quota must be a size"),
        ],
    )
    def test_is_an_error_that_names_it(self, tmp_path: Path, text: str, named: str) -> None:
        with pytest.raises(InputError) as caught:
            load_tenants(written(tmp_path, text))
        assert named in str(caught.value)

    def test_a_key_is_never_in_the_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            load_tenants(written(tmp_path, '[tenants.acme]\napi_key = "top secret"'))
        assert "secret" not in str(caught.value)

    def test_a_missing_file_and_one_of_bytes(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            load_tenants(tmp_path / "none.toml")
        (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="not TOML"):
            load_tenants(tmp_path / "bytes.toml")

    def test_the_example_is_a_tenants_file_once_its_keys_are_replaced(self, tmp_path: Path) -> None:
        text = (Path(__file__).parents[3] / "examples" / "tenants.toml").read_text()
        # One key after the other is replaced; until the last one is, the file is refused, and says where.
        for old, new, place in (
            ("replace-me-admin", "0fb1", "[admin]"),
            ("replace-me-acme", "77aa", "[tenants.acme]"),
            ("66fdf4b830f7cb887a88d42203364679bda10b00c0cf6b5fc9afe5a92d11ea16", "9c" * 32, "[tenants.bolt]"),
        ):
            with pytest.raises(InputError, match="is a placeholder") as caught:
                load_tenants(written(tmp_path, text))
            assert place in str(caught.value)
            assert old not in str(caught.value)
            assert old in text
            text = text.replace(f'"{old}"', f'"{new}"')
        assert not load_tenants(written(tmp_path, text)).is_open

    @pytest.mark.parametrize(
        "key", ["changeme", "Replace-Me", "your_api_key", "change-this-1", "placeholder"]
    )
    def test_placeholders_of_any_example_are_refused(self, tmp_path: Path, key: str) -> None:
        for line in (f'api_key = "{key}"', f'api_key = "prefix-{key}"'):
            with pytest.raises(InputError, match=r"\[tenants.a\] api_key is a placeholder"):
                load_tenants(written(tmp_path, f"[tenants.a]\n{line}"))

    @pytest.mark.parametrize("key", ["", "changeme", "replace-me", "replace-me-a", "your-api-key"])
    def test_digests_of_placeholders_and_of_no_key_are_refused(self, tmp_path: Path, key: str) -> None:
        digest = hashlib.sha256(key.encode()).hexdigest()
        with pytest.raises(InputError, match="api_key_sha256 is a placeholder"):
            load_tenants(written(tmp_path, f'[tenants.a]\napi_key_sha256 = "{digest}"'))

    def test_shares_and_quotas_are_sizes_by_scope(self, tmp_path: Path) -> None:
        text = '[tenants.a]\napi_key = "k"\nshare = "2MiB"\n[tenants.b]\napi_key = "l"\nquota = 4096\n'
        found = load_tenants(written(tmp_path, text))
        assert found.shares == {"tenant:a": 2 << 20}
        assert found.quotas == {"tenant:b": 4096}
