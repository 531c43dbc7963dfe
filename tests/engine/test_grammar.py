from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from engine_models import write_tiny_gguf

from midwatch.engine.grammar import Grammar, GrammarCompiler
from midwatch.engine.request import SamplingParams
from midwatch.engine.tokenizer import Tokenizer, open_tokenizer
from midwatch.errors import RequestError

ORDER = {
    "type": "object",
    "properties": {"kind": {"enum": ["disk_full", "oom"]}, "count": {"type": "integer"}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(write_tiny_gguf(tmp_path_factory.mktemp("grammar") / "tiny.gguf"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(tokenizer)
    yield compiler
    compiler.close()


def allowed_ids(grammar: Grammar, vocab_size: int) -> set[int]:
    bits = np.unpackbits(grammar.allowed().view(np.uint8), bitorder="little", count=vocab_size)
    return set(np.flatnonzero(bits).tolist())


def write(grammar: Grammar, tokenizer: Tokenizer, seed: int, limit: int = 400) -> str:
    """What a model that picks among the allowed tokens at random would write."""
    random = np.random.default_rng(seed)
    ids: list[int] = []
    while len(ids) < limit:
        ids += grammar.forced()
        if grammar.complete:
            break
        token = int(random.choice(sorted(allowed_ids(grammar, tokenizer.vocab_size))))
        if token in tokenizer.eos_ids:
            break
        assert grammar.accept(token), grammar.error
        ids.append(token)
    assert not grammar.error
    return tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_drawn_under_a_schema_is_a_value_of_it(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    value = json.loads(write(compiler.compile(SamplingParams(json_schema=ORDER)), tokenizer, seed))
    assert value["kind"] in ("disk_full", "oom")
    assert isinstance(value["count"], int)


@pytest.mark.parametrize("seed", range(5))
def test_a_regular_expression_closes_the_whole_answer(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    text = write(compiler.compile(SamplingParams(regex=r"[A-F]{2}-[0-9]{3}")), tokenizer, seed)
    assert len(text) == 6
    assert set(text[:2]) <= set("ABCDEF")
    assert text[2] == "-"
    assert text[3:].isdigit()


@pytest.mark.parametrize("seed", range(5))
def test_a_lark_grammar_nests(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    grammar = compiler.compile(SamplingParams(grammar='start: "(" start ")" | "x"'))
    text = write(grammar, tokenizer, seed)
    depth = text.count("(")
    assert text == "(" * depth + "x" + ")" * depth


def test_forced_tokens_are_taken_and_an_answer_is_complete_when_nothing_may_follow(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(SamplingParams(regex="hello"))
    assert tokenizer.decode(grammar.forced()) == "hello"
    assert grammar.complete
    assert allowed_ids(grammar, tokenizer.vocab_size) == tokenizer.eos_ids


def test_a_token_that_is_not_allowed_is_an_error_and_no_completion(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(SamplingParams(regex="[0-9]+"))
    assert not grammar.accept(tokenizer.encode("x")[0])
    assert grammar.error
    assert not grammar.complete


def test_a_draft_is_taken_as_far_as_the_grammar_goes_and_changes_nothing(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(SamplingParams(regex="[0-9]{4}z"))
    before = allowed_ids(grammar, tokenizer.vocab_size)
    assert grammar.accepts_prefix(tokenizer.encode("12z")) == 2
    assert grammar.accepts_prefix(tokenizer.encode("1234z")) == 5
    assert grammar.accepts_prefix([]) == 0
    assert allowed_ids(grammar, tokenizer.vocab_size) == before


def test_a_fork_goes_its_own_way(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(SamplingParams(regex="x(yy|zz)"))
    grammar.forced()
    fork = grammar.fork()
    assert fork.accept(tokenizer.encode("y")[0])
    assert grammar.accept(tokenizer.encode("z")[0])
    assert tokenizer.decode(fork.forced()) == "y"
    assert tokenizer.decode(grammar.forced()) == "z"


def test_requests_with_the_same_schema_do_not_share_a_state(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    params = SamplingParams(regex="[ab]c")
    first, second = compiler.compile(params), compiler.compile(params)
    assert first.accept(tokenizer.encode("a")[0])
    assert allowed_ids(first, tokenizer.vocab_size) != allowed_ids(second, tokenizer.vocab_size)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"json_schema": {"type": "text"}}, "JSON schema"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "nsatisfiable"),
        ({"json_schema": {"$ref": "#"}}, "JSON schema"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"enum": ["x" * 70_000]}}, "bytes"),
        ({"json_schema": {"const": object()}}, "plain JSON"),
        ({"regex": "(unclosed"}, "regex"),
        ({"regex": "(?=look)around"}, "regex"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": 'begin: "a"'}, "start"),
        ({"grammar": "start: " + "(" * 9000 + '"a"' + ")" * 9000}, "nested"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(
    compiler: GrammarCompiler, params: dict[str, object], said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        compiler.compile(SamplingParams(**params))
    assert said in str(caught.value)
    assert caught.value.status == 400
    assert caught.value.param == next(iter(params))


def _chain(rules: int) -> str:
    return "start: r0\n" + "".join(f'r{i}: r{i + 1} r{i + 1} | "x"\n' for i in range(rules)) + f'r{rules}: "z"'


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"json_schema": {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(1, 30)]}},
            "more than 2 s",
        ),
        ({"grammar": "start: T\nT: " + " & ".join(f"/.*a.{{{i}}}b.*/" for i in range(1, 40))}, "more than 2 s"),
        ({"grammar": _chain(2400)}, "too deep"),
    ],
    ids=["patterns", "intersection", "chain"],
)
def test_a_grammar_that_would_hang_or_crash_the_compiler_is_refused_and_the_next_is_served(
    compiler: GrammarCompiler, tokenizer: Tokenizer, params: dict[str, object], said: str
) -> None:
    for _ in range(2):  # the second time without another trial
        with pytest.raises(RequestError, match=said):
            compiler.compile(SamplingParams(**params))
    assert len(write(compiler.compile(SamplingParams(regex="[0-9]{3}")), tokenizer, 0)) == 3


def test_a_grammar_that_explodes_while_it_runs_ends_in_an_error(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(SamplingParams(regex="(.*a.{20}b|.*b.{20}c|.*c.{20}d)*"))
    random = np.random.default_rng(1)
    for _ in range(20_000):
        grammar.allowed()
        if grammar.error:
            break
        grammar.accept(tokenizer.encode("abcd"[random.integers(4)])[0])
    assert "state" in grammar.error
    assert not grammar.complete


def test_a_mask_may_be_computed_on_another_thread_while_one_asks(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(SamplingParams(json_schema={"type": "array", "items": {"type": "string"}}))
    grammar.forced()
    start = threading.Barrier(4)

    def ask(number: int) -> int:
        start.wait()
        for _ in range(200):
            if number % 2:
                grammar.accepts_prefix([number])
            else:
                grammar.allowed()
            assert not grammar.complete
        return len(allowed_ids(grammar, tokenizer.vocab_size))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
