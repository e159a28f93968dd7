"""The private API of jsonargparse that is used: each test fails when what it uses moves."""

from __future__ import annotations

from jsonargparse import ActionYesNo, ArgumentParser

from typst_lit._compat.jsonargparse import Option, allow_none, options


def test_options_of_a_parser() -> None:
    parser = ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--overwrite", action=ActionYesNo(no_prefix="no-"), default=False, help="Start again.")
    parser.add_class_arguments(Option, "data", skip={"flags"})
    found = {option.name: option for option in options(parser)}
    assert found["config"].flags == ["-c", "--config"] and "path" not in found and "help" not in found
    assert found["overwrite"] == Option("overwrite", ["--overwrite", "--no-overwrite"], True, False, "Start again.")
    assert found["data"].is_group and not found["data.name"].is_group


def test_a_switch_may_be_none() -> None:
    parser = ArgumentParser(exit_on_error=False)
    allow_none(parser.add_argument("--fast", action=ActionYesNo(no_prefix="no-"), default=None))
    assert [parser.parse_args(args).fast for args in ([], ["--fast"], ["--no-fast"])] == [None, True, False]
