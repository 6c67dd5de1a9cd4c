"""As little as explains the failure is latched, and nothing that the baseline could not take over."""

import pytest
from msgspec.structs import replace

from memos_llm.core.call import Target
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.commands import Rollback
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, Scope, fresh
from memos_llm.core.policy import Policy
from memos_llm.core.verdicts import Sum
from memos_llm.guard.scope import Use, has_share, models_in, obstacle, to_latch, together

BIG, SMALL = "qwen3:8b", "llama3.2:3b"


def use(component: str, model: str = BIG, failures: int = 0, n: int = 100) -> Use:
    return Use(component, component, model, n, failures)


VECTORS = Use(EMBEDDING, EMBEDDING, "mxbai", 100, 5)


@pytest.mark.parametrize(
    ("failing", "uses", "well", "latched"),
    [
        # a component, and another that is well
        (Sum(provider="vllm", component="a"), [use("a", failures=9), use("b")], {"b"}, ("a",)),
        # nobody else has had its minimum
        (Sum(provider="vllm", component="a"), [use("a", failures=9), use("b")], set(), (GLOBAL,)),
        (Sum(provider="vllm", component="a"), [use("a", failures=9)], set(), (GLOBAL,)),
        # that only embeddings are well says nothing of chat
        (Sum(provider="vllm", component="a"), [use("a", failures=9), VECTORS], {EMBEDDING}, (GLOBAL,)),
        # the provider: one component explains it
        (Sum(provider="vllm"), [use("a", failures=9), use("b")], {"b"}, ("a",)),
        (Sum(provider="vllm"), [use("a", failures=9), use("b", failures=1)], {"b"}, ("a",)),
        (Sum(provider="vllm"), [use("a", failures=9), use("b", failures=4)], set(), (GLOBAL,)),
        # a model: those that used only it
        (Sum(provider="vllm", model=SMALL), [use("a", SMALL, 9), use("b"), use("c", SMALL, 3)], set(), ("a", "c")),
        (
            Sum(provider="vllm", model=SMALL),
            [use("a", SMALL, 9), use("b"), use("c", SMALL, 3), use("c")],
            set(),
            ("a",),
        ),
        (Sum(provider="vllm", model=SMALL), [use("c", SMALL, 3), use("c"), use("b")], {"b"}, ("c",)),
        (Sum(provider="vllm", model=BIG), [use("a", failures=9), use("b", failures=9)], set(), (GLOBAL,)),
        # a model that fails in one component and is well in another is that component's failure
        (Sum(provider="vllm", model=BIG), [use("a", failures=9), use("b")], {"b"}, ("a",)),
        # who used only the failing model, and whose requests were diverted before one of them failed
        (Sum(provider="vllm", model=SMALL), [use("a", SMALL, 1), use("b"), use("c", SMALL)], set(), ("a", "c")),
        (Sum(provider="vllm", model=BIG), [use("a", failures=9), use("b"), use("c")], {"b"}, ("a", "c")),
        (Sum(provider="vllm", model=BIG), [use("a", failures=9), use("b")], set(), (GLOBAL,)),
        # but not who used others too, while somebody did not
        (Sum(provider="vllm", model=SMALL), [use("a", SMALL), use("c", SMALL, 3), use("c")], set(), ("a",)),
        # where all used others too, those that it failed
        (
            Sum(provider="vllm", model=SMALL),
            [use("a", SMALL), use("a"), use("c", SMALL, 3), use("c"), use("b")],
            set(),
            ("c",),
        ),
        # embeddings stand apart
        (Sum(provider="vllm", component=EMBEDDING), [VECTORS, use("a")], {"a"}, (EMBEDDING,)),
        (Sum(provider="vllm", model="mxbai"), [VECTORS, use("a")], set(), (EMBEDDING,)),
        (Sum(provider="vllm"), [VECTORS, use("a", failures=9)], set(), (GLOBAL, EMBEDDING)),
        # nobody asked for it
        (Sum(provider="vllm", model=BIG), [], set(), ()),
        (Sum(provider="vllm", model=SMALL), [use("a")], set(), ()),
    ],
)
def test_what_a_failing_sum_latches(failing: Sum, uses: list[Use], well: set[str], latched: tuple[str, ...]) -> None:
    assert to_latch(failing, uses, well) == latched


def test_embeddings_asked_by_another_component_are_latched_as_embeddings() -> None:
    uses = [Use(EMBEDDING, "a", "mxbai", 50, 20), use("a"), use("b")]
    assert to_latch(Sum(provider="vllm", component="a"), uses, {"b"}) == (EMBEDDING,)


def test_everything_takes_in_the_components_but_not_the_embeddings() -> None:
    assert together([("a",), ("b", "a")]) == ("a", "b")
    assert together([("a",), (GLOBAL,), (EMBEDDING,)]) == (GLOBAL, EMBEDDING)
    assert together([]) == ()


def policy(**pins: str) -> Policy:
    here, there = ProviderModel("here"), ProviderModel("there")
    models = [
        Model(name=BIG, on={"ollama": here, "vllm": there}),
        Model(name="new", on={"vllm": ProviderModel("new-there")}),
    ]
    return Policy(
        baseline="ollama",
        candidate="vllm",
        fallback=("ollama",),
        pins=pins,
        timeouts={},
        catalogue=Catalogue(models),
    )


def flags(**shares: int) -> Flags:
    scopes = {
        GLOBAL: Scope(share_ppm=shares.pop("everything", 0)),
        **{n: Scope(share_ppm=s) for n, s in shares.items()},
    }
    return Flags(installation="test", revision=1, salt="00", scopes=scopes, candidate="vllm")


def test_a_share_is_a_share_or_a_pin_that_no_latch_holds() -> None:
    assert has_share(GLOBAL, flags(everything=1), policy())
    assert has_share("a", flags(everything=1), policy())
    assert not has_share("a", flags(everything=1, a=0), policy())
    assert has_share(GLOBAL, flags(a=5), policy()), "one component has some"
    assert not has_share(GLOBAL, flags(embedding=PPM), policy()), "its scope is its own"
    assert has_share(EMBEDDING, flags(embedding=PPM), policy())
    assert not has_share(EMBEDDING, flags(everything=PPM), policy())
    assert has_share("a", flags(), policy(a="vllm"))
    assert has_share(GLOBAL, flags(), policy(a="vllm"))
    latched = Rollback(provider="vllm", incident="inc-1").apply(flags(), 1.0)
    assert not has_share("a", latched, policy(a="vllm"))
    assert not has_share(GLOBAL, latched, policy(a="vllm"))


def test_shares_of_another_candidate_are_none() -> None:
    assert not has_share(GLOBAL, replace(flags(everything=PPM), candidate="other"), policy())
    assert has_share(GLOBAL, fresh("test", "00", PPM), policy()), "the store was seeded before there was a name for it"


def test_the_models_are_those_that_were_used() -> None:
    uses = [use("a"), use("b", SMALL), VECTORS]
    assert models_in(("a",), uses, []) == (BIG,)
    assert models_in((GLOBAL,), uses, []) == (BIG, SMALL)
    assert models_in((EMBEDDING,), uses, []) == ("mxbai",)
    assert models_in((GLOBAL,), [], [Sum(provider="vllm", model=SMALL), Sum(provider="vllm")]) == (SMALL,)


def test_the_baseline_must_have_the_models_and_be_up() -> None:
    asked: list[str] = []

    def down(name: str) -> str:
        asked.append(name)
        return "down" if name == "here" else ""

    assert obstacle((BIG,), policy(), lambda _: "") is None
    found = obstacle((BIG,), policy(), down)
    assert found is not None
    assert (found.why, asked) == ("baseline-down", [Target("ollama", "here").model])
    unmapped = obstacle((BIG, "new"), policy(), lambda _: "")
    assert unmapped is not None
    assert (unmapped.why, "new" in unmapped.detail) == ("baseline-unmapped", True)
    assert obstacle((), policy(), lambda _: "") is None, "of what nobody used, only what it has is asked about"
